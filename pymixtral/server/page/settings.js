// The settings of a conversation: the form where they are written, and the request that they become.

import { path } from "./conversations.js";

const form = document.getElementById("options");
const schemaField = document.getElementById("schema");

/** What is wrong with a schema, as a sentence; "" if nothing is. */
function schemaFault(schema) {
  if (!schema.trim()) return "Write a schema, or choose another kind of answer.";
  try {
    const value = JSON.parse(schema);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? "" : "A schema is a JSON object.";
  } catch (error) {
    return `This is not JSON: ${error.message}.`;
  }
}

/** Shows settings in the form. */
export function showSettings(settings) {
  for (const field of form.elements) if (field.name) field.value = settings[field.name];
  settingsAreRight();
}

/** Whether a request can be made of what is in the form. What is wrong is said at its field. */
export function settingsAreRight() {
  for (const output of form.querySelectorAll("output")) output.value = form.elements[output.htmlFor.value].value;
  const structured = form.elements.format.value === "json_schema";
  document.getElementById("schema-part").hidden = !structured;
  const fault = structured ? schemaFault(schemaField.value) : "";
  document.getElementById("schema-error").textContent = fault;
  schemaField.ariaInvalid = String(fault !== "");
  return fault === "" && form.checkValidity();
}

/** Shows the reader the first field that is wrong. */
export function showFault() {
  if (form.reportValidity()) schemaField.focus();
}

/** Calls `changed(name, value)` whenever something else is written into the form. */
export function onSettings(changed) {
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => {
    settingsAreRight();
    changed(target.name, target.type === "range" ? Number(target.value) : target.value);
  });
}

/**
 * The request for the answer `node`, which is the last of its conversation; one that has a text is continued, and comes
 * without its experts then, whatever `routing` says: they would begin in the middle. `model` is the server's own.
 */
export function request(conversation, node, model, routing) {
  const { settings } = conversation;
  const written = path(conversation).filter(({ content }) => content); // answers that failed have none, nor has a new one
  const messages = written.map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model: settings.model || model, messages, stream: true, stream_options: { include_usage: true } };
  if (node.content) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  for (const name of ["temperature", "top_p", "seed", "max_tokens"]) {
    if (settings[name] !== "") body[name] = Number(settings[name]);
  }
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    body.response_format = {
      type: "json_schema",
      json_schema: { name: "answer", schema: JSON.parse(settings.schema) },
    };
  }
  if (routing && !node.content) body.return_routing = "generated";
  return body;
}
