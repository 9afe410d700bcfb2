"""The form of a self-check: HTML, its style and its script. `self_check` fills in the words between @."""

PAGE = """<div class="self-check" data-kind="@KIND@">
<style>
.self-check { margin: 1rem 0; max-width: 44rem; padding: 0.8rem 1rem; color: inherit;
  border: 1px solid #8a8f98; border-left: 4px solid #7a7f87; border-radius: 6px; }
.self-check[data-state="right"] { border-left-color: #009e73; }
.self-check[data-state="wrong"] { border-left-color: #d55e00; }
.self-check fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
.self-check legend { float: none; width: auto; margin: 0 0 0.5rem; padding: 0; border: 0; color: inherit;
  font-size: 1em; font-weight: 600; line-height: inherit; }
.self-check label { display: flex; gap: 0.6rem; align-items: baseline; margin: 0; padding: 0.25rem 0; }
.self-check label > span { min-width: 0; overflow-wrap: anywhere; }
.self-check[data-kind="number"] label { flex-wrap: wrap; }
.self-check :is(input[type="text"], button) { padding: 0.3rem 0.8rem; font: inherit; color: inherit;
  background: transparent; border: 1px solid #7a7f87; border-radius: 4px; max-width: 100%; }
.self-check :is(button, p, details) { margin: 0.5rem 0 0; }
.self-check p { min-height: 1.6em; }
.self-check :is(button, summary) { cursor: pointer; }
.self-check [hidden] { display: none; }
</style>
<fieldset><legend>@QUESTION@</legend>
@FIELDS@
</fieldset>
<button type="button" hidden>Check</button>
<p role="status" hidden></p>
<details><summary>Every answer explained</summary>
<ul>
@WHYS@
</ul></details>
</div>
<script>
for (const root of document.querySelectorAll(".self-check:not([data-ready])")) {
  const button = root.querySelector("button"), said = root.querySelector("[role=status]");
  const inputs = [...root.querySelectorAll("input")], whys = [...root.querySelectorAll("li")];
  const answer = text => {
    text = text.replace(/\\s|\\u2009/g, "").replace("\\u2212", "-");
    text = /^-?\\d{1,3}(,\\d{3})+(\\.\\d*)?$/.test(text) ? text.replaceAll(",", "") : text.replace(",", ".");
    return text === "" ? NaN : Number(text);
  };
  const near = (value, why) => Math.abs(value - Number(why.dataset.value)) <= Number(why.dataset.within);
  const find = () => {
    if (root.dataset.kind === "choice") {
      const chosen = inputs.find(input => input.checked);
      return chosen ? whys.find(why => why.dataset.value === chosen.value) : "Choose an answer first.";
    }
    const value = answer(inputs[0].value);
    if (!Number.isFinite(value)) return "Type a number first, in digits: 1200 or 0.5.";
    return whys.find(why => "within" in why.dataset && near(value, why)) ?? whys.at(-1);
  };
  const check = () => {
    const why = find(), right = why.dataset && "right" in why.dataset;
    const verdict = document.createElement("strong");
    verdict.textContent = right ? "Right. " : "Not yet. ";
    const words = why.dataset ? [verdict, ...why.lastElementChild.cloneNode(true).childNodes] : [why];
    said.replaceChildren(...words);
    root.dataset.state = why.dataset ? (right ? "right" : "wrong") : "";
  };
  root.dataset.ready = "";
  button.hidden = said.hidden = false;
  button.addEventListener("click", check);
  root.addEventListener("input", () => { said.replaceChildren(); root.dataset.state = ""; });
  root.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    check();
  });
}
</script>"""
