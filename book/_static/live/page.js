// The page: one state, the controls that change it, and a new answer whenever it has changed.

const FOLDER = new URL("data/", document.currentScript.src).href;
const AS_TRAINED = { on: true, alpha: 1, rank: 8, merge: "apart", base: "full" };
const WAIT = 250; // milliseconds without a change before a text is read

const isTrained = settings => Object.keys(AS_TRAINED).every(name => settings[name] === AS_TRAINED[name]);

class Page {
  constructor(root, client) {
    Object.assign(this, { root, client, task: "sst2", settings: { ...AS_TRAINED }, layer: "all", known: new Map() });
    root.replaceChildren(document.getElementById("live-panel").content.cloneNode(true));
    this.texts = Object.fromEntries(Object.entries(TASKS).map(([task, { examples }]) => [task, [...examples[0]]]));
    const titles = Object.entries(TASKS).map(([task, { title }]) => [task, title, task]);
    this.part("tasks").append(...radios("live-task", titles, this.task));
    root.addEventListener("input", event => this.changed(event.target));
    this.part("reset").addEventListener("click", () => this.use({ settings: AS_TRAINED }));
    this.part("copy").addEventListener("click", () => this.copy());
    this.showTask();
    this.showSettings();
    this.read();
  }

  part(name) {
    return this.root.querySelector(`[data-part="${name}"]`);
  }

  get about() {
    return this.client.meta.tasks[this.task];
  }

  // Set every control to where an experiment starts: its own text, the reader's (`carry`), or the first example.
  start({ task, texts, carry, settings = {} }) {
    const [own] = this.texts[this.task];
    const reading = this.use({ task, texts: carry && own.trim() ? [own] : (texts ?? TASKS[task].examples[0]), settings });
    this.part("answer").focus();
    return reading;
  }

  // Set task, texts and settings from outside: an example, an experiment.
  use({ task = this.task, texts, settings }) {
    if (task !== this.task) this.clear();
    this.task = task;
    if (texts) this.texts[task] = [...texts];
    if (settings) this.settings = { ...AS_TRAINED, ...settings };
    this.root.querySelector(`[name="live-task"][value="${task}"]`).checked = true;
    this.showTask();
    this.showSettings();
    return this.read();
  }

  // A control has moved.
  changed(target) {
    if (target.name === "live-task") return this.use({ task: target.value });
    if (target.dataset.text) {
      this.texts[this.task][Number(target.dataset.text)] = target.value;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.read(), WAIT);
      return this.showPython();
    }
    if (target.dataset.part === "layer") {
      this.layer = target.value;
      return this.showTokens();
    }
    const { settings } = this, name = target.name.replace("live-", "");
    settings[name] = target.type === "checkbox" ? target.checked : target.type === "range" ? Number(target.value) : target.value;
    this.showSettings();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.read(), target.type === "range" ? WAIT / 2 : 0);
  }

  // The chosen task's fields and examples.
  showTask() {
    const words = TASKS[this.task], { about } = this;
    this.part("about").replaceChildren(element("strong", {}, words.about), ` ${howGood(about, words.always)}`);
    this.part("fields").replaceChildren(
      ...words.fields.map((name, k) => {
        const area = element("textarea", { "data-text": k, rows: about.spans && k ? 7 : 2, spellcheck: "false" });
        area.value = this.texts[this.task][k];
        return element("label", {}, name, area);
      }),
    );
    this.part("examples").replaceChildren(
      ...words.examples.map(texts => {
        const button = element("button", { type: "button", class: "live-chip" }, about.spans ? texts[0] : texts.join(" / "));
        button.addEventListener("click", () => this.use({ texts }));
        return button;
      }),
    );
  }

  // Every control as the settings are, and what they amount to.
  showSettings() {
    const { on, alpha, rank, merge, base } = this.settings, numbers = rank * 2 * this.client.meta.hidden * 2 * this.client.meta.layers;
    const control = name => this.root.querySelector(`[name="live-${name}"]`);
    control("on").checked = on;
    control("alpha").value = alpha;
    control("rank").value = rank;
    for (const [name, value] of [["merge", merge], ["base", base]])
      this.root.querySelector(`[name="live-${name}"][value="${value}"]`).checked = true;
    for (const name of ["alpha", "rank"]) control(name).disabled = !on;
    for (const input of this.root.querySelectorAll('[name="live-merge"]')) input.disabled = !on;
    this.part("alpha").textContent = `${alpha.toFixed(2)} times as trained`;
    this.part("rank").textContent = `${rank} of ${this.about.rank} directions, ${numbers.toLocaleString("en-GB")} numbers`;
    this.part("reset").disabled = isTrained(this.settings);
    this.part("head").hidden = on && alpha > 0;
    this.part("head").textContent = this.about.alsoTrained
      ? "Now the base answers with the task’s head, biases and layer norms, which were trained together with the update: take it as a guess."
      : "Now the base answers through the task’s head, which was trained to read it with the update: take it as a guess.";
    this.showPython();
  }

  showPython() {
    this.part("python").textContent = pythonFor(this.task, this.texts[this.task], this.settings, this.about);
  }

  // Have the texts read and show the answer; a newer question makes the worker drop this one.
  async read() {
    clearTimeout(this.timer);
    const { task, about, settings } = this, texts = [...this.texts[task]], empty = texts.findIndex(text => !text.trim());
    const question = { kind: "run", task, texts, settings: { ...settings } }, began = (this.latest = {});
    if (empty >= 0) {
      this.root.setAttribute("aria-busy", "false");
      this.clear();
      return this.say(`Type something under “${TASKS[task].fields[empty]}”.`);
    }
    this.part(this.result ? "facts" : "said").textContent = "computing…";
    const progress = share => this.latest === began && this.root.style.setProperty("--live-progress", share);
    this.root.setAttribute("aria-busy", "true");
    try {
      const result = await this.client.ask(question, [], progress);
      if (!result || this.latest !== began) return null;
      this.show(result, texts, question.settings);
      await this.compare(question, began);
      return result;
    } catch (error) {
      if (this.latest === began) {
        this.clear();
        this.say(error.message);
      }
      return null;
    } finally {
      if (this.latest === began) this.root.setAttribute("aria-busy", "false");
    }
  }

  // Have the same text read as trained too, unless that is known, and mark it in the picture.
  async compare({ task, texts, settings }, began) {
    this.root.setAttribute("aria-busy", "false");
    const key = JSON.stringify([task, texts]), { result } = this;
    if (this.about.spans || this.known.has(key)) return;
    const trained = await this.client.ask({ kind: "run", task, texts, settings: { ...AS_TRAINED } });
    if (trained) this.known.set(key, trained);
    if (trained && this.latest === began) this.show(result, texts, settings);
  }

  show(result, texts, settings) {
    const key = JSON.stringify([this.task, texts]), { known, about } = this;
    if (isTrained(settings)) known.set(key, result);
    const changed = changes(settings, about);
    this.part("changed").hidden = !changed;
    this.part("changed").textContent = changed && `changed: ${changed}`;
    const { sentence, picture } = drawAnswer(result, texts, about, TASKS[this.task], known.get(key));
    this.say(sentence);
    this.part("picture").replaceChildren(picture);
    const cut = result.inAll > result.read ? `only the first ${result.read} of ${result.inAll} tokens were read` : `${result.read} tokens`;
    const windows = result.windows > 1 ? `${result.windows} overlapping windows` : cut;
    this.part("facts").textContent = `${windows}, read in ${seconds(result.milliseconds)} on this device.`;
    this.part("key").hidden = about.spans || !known.has(key);
    this.result = result;
    this.showTokens();
  }

  showTokens() {
    if (this.result) this.part("tokens").replaceChildren(...drawTokens(this.result, this.layer));
  }

  // No answer: the last one is of another task, or of a text that is no longer there.
  clear() {
    this.result = null;
    for (const name of ["said", "facts", "picture", "tokens"]) this.part(name).replaceChildren();
    for (const name of ["changed", "key"]) this.part(name).hidden = true;
  }

  say(sentence) {
    this.part("said").textContent = sentence;
  }

  async copy() {
    await navigator.clipboard.writeText(this.part("python").textContent);
    this.part("copy").textContent = "Copied";
    setTimeout(() => (this.part("copy").textContent = "Copy"), 1500);
  }
}

// Before the click: a button, or why there is none.
function start() {
  const root = document.getElementById("live"), part = name => root.querySelector(`[data-part="${name}"]`);
  if (!root) return;
  const { missing } = root.dataset, button = part("load"), said = part("status");
  if (missing || typeof Worker === "undefined") {
    said.textContent = missing
      ? `This copy of the book was built without the model. ${missing}`
      : "This browser has no web workers, so the model cannot run here. Any current Firefox, Chrome, Edge or Safari can.";
    return;
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    button.disabled = true;
    part("progress").hidden = false;
    const progress = share => {
      part("progress").value = share;
      said.textContent = share < 1 ? `Loading: ${Math.round(100 * share)} %` : "Unpacking the weights";
    };
    progress(0);
    Client.load(FOLDER, progress).then(
      client => {
        window.loraLive = new Page(root, client); // for a reader's console, and for the tests
        root.querySelector('[name="live-task"]:checked').focus({ preventScroll: true });
        for (const experiment of document.querySelectorAll("button[data-live]")) experiment.disabled = false;
      },
      error => {
        said.textContent = error.message;
        part("progress").hidden = true;
        button.disabled = false;
      },
    );
  });
  for (const experiment of document.querySelectorAll("button[data-live]")) {
    experiment.disabled = true;
    experiment.addEventListener("click", () => {
      root.scrollIntoView({ block: "start" });
      loraLive.start(JSON.parse(experiment.dataset.live));
    });
  }
}

document.readyState === "loading" ? addEventListener("DOMContentLoaded", start) : start();
