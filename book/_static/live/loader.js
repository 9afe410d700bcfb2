// Loads the model's files by script tags, which work from a folder as from a server, and starts the worker.

const FIRST_CHARACTER = 0x3400; // as in lora_tutorial/pages/live.py: each character holds 15 bits

// The bits of `text` into `bytes`, from place `at` on.
function unpack(text, bytes, at) {
  for (let k = 0, held = 0, bits = 0; k < text.length; k++) {
    held = (held << 15) | (text.charCodeAt(k) - FIRST_CHARACTER);
    for (bits += 15; bits >= 8 && at < bytes.length; ) bytes[at++] = held >> (bits -= 8);
    held &= (1 << bits) - 1;
  }
}

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(script.remove());
    script.onerror = () => reject(new Error(`The file ${address.split("/").pop()} did not come. Reload the page and try again.`));
    document.head.append(script);
  });
}

// The data's scripts call these, and what they hold waits here until it is unpacked.
window.liveData = {
  meta: value => (liveData.held = value),
  part: (name, number, text) => (liveData.held = text),
};

// One of the two files, whole; `step` is called after each of its parts.
async function loadParts(folder, name, { bytes, parts, partBytes }, step) {
  const whole = new Uint8Array(bytes);
  for (let part = 0; part < parts; part++) {
    await loadScript(`${folder}${name}-${String(part).padStart(2, "0")}.js`);
    unpack(liveData.held, whole, part * partBytes);
    liveData.held = null;
    step();
  }
  return whole.buffer;
}

// The model in its worker: `ask` sends a message and promises the answer to it.
class Client {
  // Load everything from `folder`; `progress` is told the share that is done, 0 to 1.
  static async load(folder, progress) {
    const client = new Client();
    await loadScript(`${folder}meta.js`);
    client.meta = liveData.held;
    let done = 0;
    const { base, adapters } = client.meta, all = base.parts + adapters.parts;
    const step = () => progress(++done / all);
    const buffers = [await loadParts(folder, "base", base, step), await loadParts(folder, "adapters", adapters, step)];
    const message = { kind: "load", meta: client.meta, base: buffers[0], adapters: buffers[1] };
    await client.ask(message, buffers); // handed over, not copied
    return client;
  }

  constructor() {
    // A page opened from a folder may not start a worker from a file, but may from text that it holds.
    this.worker = new Worker(URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" })));
    this.waiting = new Map();
    this.asked = 0;
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = event => this.waiting.forEach(({ reject }) => reject(new Error(event.message)));
  }

  // `progress` is told how far the answer is. A dropped question is answered with null.
  ask(message, transfer = [], progress = () => {}) {
    const id = ++this.asked;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, progress });
      this.worker.postMessage({ ...message, id }, transfer);
    });
  }

  receive(data) {
    const asked = this.waiting.get(data.id);
    if (data.kind === "progress") return asked.progress(data.share);
    this.waiting.delete(data.id);
    if (data.kind === "failed") asked.reject(new Error(data.why));
    else asked.resolve(data.kind === "dropped" ? null : data);
  }
}
