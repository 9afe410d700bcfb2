// What the page says about each task, in a reader's words, and texts to begin with. `always` is the commoner answer, and
// in how many of 100 of the rows that an adapter is scored on it is the right one.

const TASKS = {
  sst2: {
    title: "Good or bad?",
    about: "Is this remark positive?",
    fields: ["A remark about a film"],
    labels: { negative: "bad", positive: "good" },
    always: ["good", 51],
    examples: [
      ["A warm, funny film that I would gladly see again."],
      ["Two hours of my life that I will never get back."],
      ["The plot is thin, but the acting carries it."],
      ["I expected to be bored, and I was not."],
    ],
  },
  cola: {
    title: "Is it English?",
    about: "Would a speaker of English say this sentence?",
    fields: ["A sentence"],
    labels: { unacceptable: "no", acceptable: "yes" },
    examples: [["The cat sat on the mat."], ["Cat the mat on sat the."], ["She has slept."], ["She have sleeping him the."]],
  },
  mrpc: {
    title: "The same news?",
    about: "Do two sentences report the same thing?",
    fields: ["One sentence", "The other"],
    labels: { not_equivalent: "no", equivalent: "yes" },
    always: ["yes", 66],
    examples: [
      ["The company said profits rose by eight percent in May.", "Profits were up 8 percent in May, the company said."],
      ["The company said profits rose by eight percent in May.", "The company will open two new offices in Ohio next year."],
    ],
  },
  rte: {
    title: "Does it follow?",
    about: "If the first sentence is true, is the second?",
    fields: ["What is known", "Does this follow?"],
    labels: { entailment: "it follows", not_entailment: "it does not" },
    always: ["it follows", 53],
    examples: [
      ["A woman in a red coat is walking her dog through the park.", "A woman is outside with a dog."],
      ["A woman in a red coat is walking her dog through the park.", "The park is closed today."],
    ],
  },
  stsb: {
    title: "How alike?",
    about: "How close are two sentences in meaning, from 0 to 5?",
    fields: ["One sentence", "The other"],
    labels: {},
    examples: [
      ["A man is playing a guitar.", "Someone is playing an instrument."],
      ["A man is playing a guitar.", "A man is playing the guitar."],
      ["A man is playing a guitar.", "The stock market fell on Monday."],
    ],
  },
  squad: {
    title: "Find the answer",
    about: "Where in a paragraph is the answer to a question?",
    fields: ["A question", "A paragraph that holds the answer"],
    labels: {},
    examples: ["How tall is the tower?", "Who designed the tower?", "When was the lamp first lit?"].map(question => [
      question,
      "The lighthouse at Cape Merrow was designed by Anna Lindqvist and built from local granite. Work began in 1871 " +
        "and took six years; the lamp was first lit in March 1877. The tower is 42 metres tall and stands on a reef " +
        "two miles from the shore. Since 1984 it has run without a keeper.",
    ]),
  },
};

// How good an adapter is, from its scores on rows that it was not trained on.
function howGood({ scores, scoredOn }, always) {
  const of100 = share => `${Math.round(100 * share)} of 100`;
  const rows = scoredOn === "test" ? "test rows" : "validation rows";
  if ("matthews" in scores)
    return (
      `Matthews correlation ${scores.matthews.toFixed(2)} on the ${rows}: 0 would be guessing, 1 perfect.` +
      (scores.matthews < 0.6 ? " It lets many mistakes pass that you would hear at once." : "")
    );
  if ("accuracy" in scores)
    return (
      `Right in ${of100(scores.accuracy)} ${rows}; always saying “${always[0]}” would be in ${always[1]}.` +
      (scores.accuracy < always[1] / 100 + 0.05 ? " So it has hardly learnt the task, and its answers tell you little." : "")
    );
  if ("pearson" in scores) return `Correlation with people's ratings ${scores.pearson.toFixed(2)} on the ${rows}; 1 would be perfect.`;
  return `Finds the exact answer to ${of100(scores.exact_match / 100)} questions of the ${rows}.`;
}
