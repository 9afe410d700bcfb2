// A box "Predict first" asks before the page tells: what answers it stays folded until the reader has chosen or typed
// a prediction, or wants to be shown. Find-in-page and a link into the answer unfold it; without scripts and on paper
// everything is open. What was predicted is kept in this browser.
document.addEventListener("DOMContentLoaded", () => {
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const memory = {  // a browser may refuse to keep anything
    get: key => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* it is asked again next time */ } },
    remove: key => { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } },
  };

  // The answer: the rest of the section, to its first part or an exercise. A later cell tells it too, and a later
  // question may build on it.
  const answerOf = box => {
    const found = [];
    for (let next = box.nextElementSibling; next; next = next.nextElementSibling) {
      if (next.matches("section, .exercise, .solution")) break;
      found.push(next);
    }
    return found;
  };

  // The choices that a single question names after its colon: "about 0.1, 0.5 or 0.9?"
  // "About 1, 2 or 4 GB": what stands before the first number and behind the last is said of all of them.
  const whole = choices => {
    const before = /^about /i.exec(choices[0])?.[0] ?? "", numbers = choices.map(choice => choice.replace(/^about /i, ""));
    const behind = /^[\d.,]+(\s.+)$/.exec(numbers.at(-1))?.[1] ?? "", bare = numbers.slice(0, -1).every(number => /^[\d.,]+$/.test(number));
    const same = numbers.every(number => /^\d/.test(number)) ? before : "";
    return choices.map((choice, k) => (same ? same + numbers[k] : choice) + (bare && k < choices.length - 1 ? behind : ""));
  };

  const choicesIn = box => {
    const paragraph = box.querySelector("p:last-child"), text = paragraph?.textContent.trim().replaceAll("\u00a0", " ") ?? "";
    const named = /^[^?]*: ([^:?.]*(?:\.\d[^:?.]*)*)\?$/.exec(text);
    if (!named || paragraph.querySelector(".math")) return [];
    const choices = whole(named[1].split(/,\s+or\s+|,\s+|\s+or\s+/));
    return choices.length > 1 && choices.every(choice => choice.length < 60) ? choices : [];
  };

  [...document.querySelectorAll(".bd-article .predict.admonition")].forEach((box, place) => {
    const answer = answerOf(box);
    if (!answer.some(part => part.matches(".cell"))) return;
    const key = `prediction:${DOCUMENTATION_OPTIONS.pagename}:${place}`;
    const folded = element("div", { className: "prediction-answer" });
    box.after(folded);
    folded.append(...answer);

    const choices = choicesIn(box), name = `prediction-${place}`;
    const fields = choices.length
      ? element("fieldset", {}, element("legend", { textContent: "Your prediction" }), ...choices.map(value =>
        element("label", {}, element("input", { type: "radio", name, value }), element("span", { textContent: value }))))
      : element("label", {}, "Your prediction ", element("input", { type: "text", name, autocomplete: "off" }));
    const skip = element("button", { type: "button", textContent: "Just show me" });
    const said = element("p", { role: "status" }), hint = "The rest of this section unfolds with your answer.";
    const form = element("form", { className: "prediction", noValidate: true }, fields,
      element("div", {}, element("button", { type: "submit", textContent: "Show the answer" }), skip), said);
    const again = element("button", { type: "button", textContent: "Ask me again" });
    const kept = element("p", { className: "predicted", tabIndex: -1 });
    box.append(form, kept);

    const show = value => {
      folded.removeAttribute("hidden");
      form.hidden = true;
      kept.hidden = false;
      kept.replaceChildren(value ? "You predicted: " : "Shown without a prediction. ",
        ...(value ? [element("strong", { textContent: value }), " "] : []), again);
      dispatchEvent(new Event("resize"));  // what was folded had no width
    };
    const fold = () => {
      folded.setAttribute("hidden", "until-found");
      form.hidden = false;
      kept.hidden = true;
      said.textContent = hint;
    };
    const decide = value => {
      memory.set(key, value);
      show(value);
      kept.focus();
    };
    form.addEventListener("submit", event => {
      event.preventDefault();
      const value = String(new FormData(form).get(name) ?? "").trim();
      if (value) decide(value);
      else said.textContent = choices.length ? "Choose one first." : "Type a prediction first, however rough.";
    });
    skip.addEventListener("click", () => decide(""));
    again.addEventListener("click", () => {
      memory.remove(key);
      fold();
      form.querySelector("input").focus();
    });
    folded.addEventListener("beforematch", () => show(""));
    const before = memory.get(key);
    before === null ? fold() : show(before);
  });
});
