// The OpenAI-compatible endpoints of the server that serves this page.

const BASE = new URL("v1/", document.baseURI);

/** An answer with an error status; `message`, `type`, `param` and `code` are those of the error object in it. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message || `The server answered with status ${status}.`);
    this.status = status;
    this.type = error?.type;
    this.param = error?.param;
    this.code = error?.code;
  }
}

async function request(path, { body, key, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const form = body instanceof FormData;
  if (body && !form) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, BASE), {
      method: body ? "POST" : "GET",
      headers,
      body: form ? body : body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server cannot be reached. Is it still running?", type: "connection_error" });
  }
  if (response.ok) return response;
  const text = await response.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    error = { message: text.slice(0, 300).trim() };
  }
  throw new ApiError(response.status, typeof error === "string" ? { message: error } : error);
}

/** The data of each server-sent event in a body of bytes, as text; ends with the body. */
export async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
    if (rest.startsWith("data:")) data.push(rest.slice(5).trimStart());
    if (data.length) yield data.join("\n");
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** The models that the server offers: [{id, ...}]. */
export async function models(key) {
  return (await (await request("models", { key })).json()).data;
}

/** The chunks of a streamed chat completion. */
export async function* chat(body, key, signal) {
  const response = await request("chat/completions", { body: { ...body, stream: true }, key, signal });
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error);
    yield chunk;
  }
}

/** Pictures drawn from words, as data URLs. */
export async function drawPictures(body, key, signal) {
  const answer = await (await request("images/generations", { body, key, signal })).json();
  const type = `image/${answer.output_format || "png"}`;
  return answer.data.map((picture) => (picture.b64_json ? `data:${type};base64,${picture.b64_json}` : picture.url));
}

/** What is said in a WAV file. */
export async function transcribe(wav, model, key, signal) {
  const body = new FormData();
  body.append("file", new Blob([wav], { type: "audio/wav" }), "speech.wav");
  body.append("model", model);
  return (await (await request("audio/transcriptions", { body, key, signal })).json()).text;
}

/** A text read aloud, as the bytes of a WAV file. */
export async function speak(input, model, voice, key, signal) {
  const body = { input, model, voice, response_format: "wav" };
  return new Uint8Array(await (await request("audio/speech", { body, key, signal })).arrayBuffer());
}
