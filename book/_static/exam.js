// The final exam keeps the score: what the first answer to each question was, and where it stands now. It is kept in
// this browser, from a folder too. Without scripts the questions and their explanations are there all the same.
document.addEventListener("DOMContentLoaded", () => {
  const checks = [...document.querySelectorAll(".self-check")], first = document.querySelector(".bd-article section h2");
  if (DOCUMENTATION_OPTIONS.pagename !== "book/final_exam" || !first) return;
  const KEY = "final-exam";
  const nameOf = check => check.querySelector("input").name;
  const load = () => {
    try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; }
  };
  let answers = load();  // question: [the first answer was right, the latest one is]
  const keep = () => { try { localStorage.setItem(KEY, JSON.stringify(answers)); } catch { /* kept until the page closes */ } };

  const board = document.createElement("section");
  board.className = "exam-score";
  board.setAttribute("aria-label", "Your score");
  board.innerHTML = '<p role="status"></p><ol></ol><button type="button">Start again</button>';
  const [said, list, button] = board.children;
  first.closest("section").before(board);
  const links = checks.map((check, place) => {
    check.id = `question-${place + 1}`;
    check.querySelector("legend, p, label").prepend(`${place + 1}. `);
    const item = document.createElement("li"), link = document.createElement("a");
    Object.assign(link, { href: `#${check.id}`, textContent: place + 1 });
    item.append(link);
    list.append(item);
    return link;
  });

  const show = () => {
    const of = checks.map(check => answers[nameOf(check)]);
    const count = test => of.filter(test).length, done = count(Boolean), now = count(answer => answer?.[1]);
    const score = count(answer => answer?.[0]);
    said.textContent = done === 0 ? `${checks.length} questions. Your score appears here.`
      : `${score} of ${done} right at the first try` + (now > score ? `, ${now} by now` : "")
        + (done < checks.length ? `. ${checks.length - done} to go.` : `. That is your score: ${score} of ${checks.length}.`);
    links.forEach((link, place) => {
      const answer = of[place];
      link.dataset.state = !answer ? "" : answer[0] ? "right" : answer[1] ? "mended" : "wrong";
      const words = { "": "not answered", right: "right at the first try", mended: "right by now", wrong: "not right yet" };
      link.setAttribute("aria-label", `Question ${place + 1}: ${words[link.dataset.state]}`);
    });
    button.hidden = done === 0;
  };
  for (const check of checks) new MutationObserver(() => {
    const right = check.dataset.state === "right";
    if (!check.dataset.state) return;
    answers[nameOf(check)] = [answers[nameOf(check)]?.[0] ?? right, right];
    keep();
    show();
  }).observe(check, { attributeFilter: ["data-state"] });
  button.addEventListener("click", () => {
    answers = {};
    keep();
    for (const check of checks) {
      for (const input of check.querySelectorAll("input")) input.type === "radio" ? input.checked = false : input.value = "";
      check.dispatchEvent(new Event("input"));
    }
    show();
    links[0].focus();
  });
  show();
});
