/**
 * The end-to-end experiment: a softmax policy of 64 contexts and 16 actions, answers that stop at random,
 * real policy gradients, and the exact gradient by enumeration to compare them with.
 */
import { planAggregation } from '../../src/rl/index.js';
import { SeededRandom } from '../../src/seeded-random.js';
import { aggregations, Moments, perRule, type Rule, type RuleResult, rules } from './rules.js';
import { centredLog, GROUP } from './synthetic.js';

/** A task for a softmax policy. One answer is a walk over contexts with an action in each. */
export interface PolicyTask {
  readonly name: string;
  readonly numContexts: number;
  readonly numActions: number;
  /** `[numContexts, numActions]`, parameters of the policy. */
  readonly logits: Float64Array;
  /** `[numContexts, numActions]`, reward of ending with this action in this context. */
  readonly rewards: Float64Array;
  /**
   * `[numContexts, numActions]`, context after an action. Without it every context is drawn anew, and then
   * all answers have the same expected gradient, whatever their length.
   */
  readonly next?: Int32Array;
  /** Chances to stop after a token; each answer has one of them, drawn evenly. */
  readonly stopping: readonly number[];
  /** Answers stop here at the latest: `M`. */
  readonly longest: number;
  /**
   * An answer is judged by its last action with chance `(1 - kappa z(L)) / (1 + kappa)`, else by a coin:
   * with `kappa` above 0 long answers say less.
   */
  readonly kappa: number;
}

const TASK_STREAM = 3;
const ANSWER_STREAM = 4;

/** The three tasks of the table. */
export function policyTasks(seed: number): readonly PolicyTask[] {
  const [numContexts, numActions] = [64, 16];
  const random = new SeededRandom(seed, TASK_STREAM);
  const size = numContexts * numActions;
  const shared = {
    numContexts,
    numActions,
    logits: Float64Array.from({ length: size }, () => random.normal()),
    rewards: Float64Array.from({ length: size }, () => random.uniform()),
    stopping: [1 / 8, 1 / 32, 1 / 128],
    longest: 256,
  };
  const next = Int32Array.from({ length: size }, () => random.below(numContexts));
  return [
    { ...shared, name: 'last action decides, κ 0', kappa: 0 },
    { ...shared, name: 'last action decides, κ .3', kappa: 0.3 },
    { ...shared, name: 'actions move the context', kappa: 0, next },
  ];
}

/** Chance of every action in every context, `[numContexts, numActions]`. */
function probabilities({ logits, numActions }: PolicyTask): Float64Array {
  const p = new Float64Array(logits.length);
  for (let row = 0; row < logits.length; row += numActions) {
    const exps = logits.subarray(row, row + numActions).map(Math.exp);
    const sum = exps.reduce((a, b) => a + b, 0);
    p.set(
      exps.map((exp) => exp / sum),
      row,
    );
  }
  return p;
}

/** Chance that an answer of `length` tokens is judged by its last action. */
function judged({ kappa, longest }: PolicyTask, length: number): number {
  return (1 - kappa * centredLog(length, 1, longest)) / (1 + kappa);
}

/** Expected reward and its gradient by the logits, enumerated over lengths, contexts and actions. */
export function exactGradient(task: PolicyTask): { readonly value: number; readonly gradient: Float64Array } {
  const { numContexts, numActions, rewards, next, stopping, longest } = task;
  const p = probabilities(task);
  const gradient = new Float64Array(p.length);
  let value = 0;
  for (const hazard of stopping) {
    // Contexts of answers that have not stopped, at each token, [longest, numContexts].
    const reach = new Float64Array(longest * numContexts);
    reach.fill(1 / numContexts, 0, numContexts);
    for (let t = 1; t < longest; t++) {
      const now = reach.subarray(t * numContexts, (t + 1) * numContexts);
      const before = reach.subarray((t - 1) * numContexts, t * numContexts);
      if (next === undefined) now.fill((1 - hazard) ** t / numContexts);
      else
        for (const [i, to] of next.entries())
          now[to] += (1 - hazard) * before[Math.floor(i / numActions)] * p[i];
    }
    // From the last token to the first: expected reward from a context on, and the gradient of each token.
    let after = new Float64Array(numContexts);
    for (let t = longest - 1; t >= 0; t--) {
      const stop = t === longest - 1 ? 1 : hazard;
      const share = judged(task, t + 1);
      const anew = after.reduce((sum, v) => sum + v, 0) / numContexts;
      const here = new Float64Array(numContexts);
      const worth = p.map((_, i) => {
        const ending = share * rewards[i] + (1 - share) / 2;
        return stop * ending + (1 - stop) * (next === undefined ? anew : after[next[i]]);
      });
      p.forEach((chance, i) => {
        here[Math.floor(i / numActions)] += chance * worth[i];
      });
      p.forEach((chance, i) => {
        const context = Math.floor(i / numActions);
        const weight = reach[t * numContexts + context] / stopping.length;
        gradient[i] += weight * chance * (worth[i] - here[context]);
      });
      after = here;
    }
    value += after.reduce((sum, v) => sum + v, 0) / numContexts / stopping.length;
  }
  return { value, gradient };
}

/**
 * `E |g|^2 - |E g|^2` of an answer's gradient by its length, `[longest + 1]`, for contexts that are drawn
 * anew: scores of different tokens have mean 0 given each other, so their squares add up. Null otherwise.
 */
function varianceByLength(task: PolicyTask, baseline: number): Float64Array | null {
  if (task.next !== undefined) return null;
  const { numContexts, numActions, rewards, longest } = task;
  const p = probabilities(task);
  // Means over contexts and actions: |score|^2, A^2, A^2 |score|^2, and the gradient when the action decides.
  let [square, advantage, both] = [0, 0, 0];
  const direct = new Float64Array(p.length);
  for (let row = 0; row < p.length; row += numActions) {
    const own = p.subarray(row, row + numActions);
    const collision = own.reduce((sum, x) => sum + x * x, 0);
    const mean = own.reduce((sum, x, a) => sum + x * rewards[row + a], 0);
    own.forEach((chance, a) => {
      const score = 1 - 2 * chance + collision;
      const error = (rewards[row + a] - baseline) ** 2;
      square += (chance * score) / numContexts;
      advantage += (chance * error) / numContexts;
      both += (chance * error * score) / numContexts;
      direct[row + a] = (chance * (rewards[row + a] - mean)) / numContexts;
    });
  }
  const coin = (baseline ** 2 + (1 - baseline) ** 2) / 2;
  const signal = direct.reduce((sum, x) => sum + x * x, 0);
  return Float64Array.from({ length: longest + 1 }, (_, length) => {
    if (length === 0) return 0;
    const share = judged(task, length);
    const byAction = (length - 1) * advantage * square + both;
    const byCoin = length * coin * square;
    return share * byAction + (1 - share) * byCoin - share ** 2 * signal;
  });
}

/** Results of one task. */
export interface PolicyRow {
  readonly task: string;
  readonly kappa: number;
  /** Tokens per answer. */
  readonly meanLength: number;
  /** Expected reward, exact. */
  readonly value: number;
  readonly results: Readonly<Record<Rule, RuleResult>>;
}

/**
 * `batches` batches of {@link GROUP} answers. Advantages are rewards less their exact mean. `mean` is that of
 * the estimates along the exact gradient; deviations are those of the whole vector.
 */
export function policyRow(task: PolicyTask, batches: number, seed: number): PolicyRow {
  const { numActions, longest } = task;
  const { value, gradient } = exactGradient(task);
  const norm = Math.sqrt(gradient.reduce((sum, x) => sum + x * x, 0));
  const byLength = varianceByLength(task, value);
  const modes = aggregations(longest, { kind: 'iid' });
  const p = probabilities(task);
  const tally = perRule(() => ({
    along: new Moments(),
    sum: new Float64Array(p.length),
    squares: 0,
    given: new Moments(),
    expected: new Moments(),
  }));
  const random = new SeededRandom(seed, ANSWER_STREAM);
  const lengths = new Int32Array(GROUP);
  const estimate = new Float64Array(p.length);
  let tokens = 0;
  for (let batch = 0; batch < batches; batch++) {
    const answers = Array.from({ length: GROUP }, (_, i) => {
      const answer = sampleAnswer(task, p, random);
      lengths[i] = answer.length;
      tokens += answer.length;
      return answer;
    });
    for (const rule of rules) {
      const { seqScale } = planAggregation({ lengths }, { aggregation: modes[rule] });
      const { along, sum, given, expected } = tally[rule];
      estimate.fill(0);
      let [noise, mean] = [0, 0];
      answers.forEach(({ length, reward, visits, actions }, i) => {
        const weight = seqScale[i] * (reward - value);
        for (const [place, count] of actions) estimate[place] += weight * count;
        for (const [row, count] of visits) {
          for (let a = row; a < row + numActions; a++) estimate[a] -= weight * count * p[a];
        }
        noise += seqScale[i] ** 2 * (byLength?.[length] ?? 0);
        mean += seqScale[i] * judged(task, length);
      });
      let [inner, square] = [0, 0];
      for (let k = 0; k < estimate.length; k++) {
        inner += estimate[k] * gradient[k];
        square += estimate[k] ** 2;
        sum[k] += estimate[k];
      }
      along.add(inner / norm);
      tally[rule].squares += square;
      given.add(noise);
      expected.add(mean);
    }
  }
  const target = norm / longest;
  // Judged by the last action, an answer's expected gradient is its chance of that times this one.
  const direct = byLength === null ? 0 : norm / meanJudged(task);
  const results = perRule((rule): RuleResult => {
    const { along, sum, squares, given, expected } = tally[rule];
    const meanSquare = sum.reduce((total, x) => total + (x / batches) ** 2, 0);
    const spread = Math.sqrt((squares - batches * meanSquare) / (batches - 1)) / target;
    const theory = Math.sqrt(given.mean + expected.variance * direct ** 2) / target;
    return {
      mean: along.mean / target,
      standardError: Math.sqrt(along.variance / batches) / target,
      cv: spread / Math.abs(along.mean / target),
      spread,
      theory: byLength === null ? null : theory,
    };
  });
  return { task: task.name, kappa: task.kappa, meanLength: tokens / (batches * GROUP), value, results };
}

/** Chance that an answer is judged by its last action, over all lengths. */
function meanJudged(task: PolicyTask): number {
  let mean = 0;
  for (const hazard of task.stopping) {
    for (let length = 1; length <= task.longest; length++) {
      const stop = length === task.longest ? 1 : hazard;
      mean += ((1 - hazard) ** (length - 1) * stop * judged(task, length)) / task.stopping.length;
    }
  }
  return mean;
}

/** One answer: its reward, and how often it was where and did what. */
interface Answer {
  readonly length: number;
  readonly reward: number;
  /** First parameter of a context, and visits. */
  readonly visits: ReadonlyMap<number, number>;
  /** Parameter of an action, and how often it was taken. */
  readonly actions: ReadonlyMap<number, number>;
}

function sampleAnswer(task: PolicyTask, p: Float64Array, random: SeededRandom): Answer {
  const { numContexts, numActions, rewards, next, stopping, longest } = task;
  const hazard = stopping[random.below(stopping.length)];
  const visits = new Map<number, number>();
  const actions = new Map<number, number>();
  let context = random.below(numContexts);
  for (let length = 1; ; length++) {
    const row = context * numActions;
    const place = row + chooseAction(p, row, numActions, random.uniform());
    visits.set(row, (visits.get(row) ?? 0) + 1);
    actions.set(place, (actions.get(place) ?? 0) + 1);
    if (length === longest || random.uniform() < hazard) {
      const byAction = random.uniform() < judged(task, length);
      return { length, reward: byAction ? rewards[place] : random.below(2), visits, actions };
    }
    context = next === undefined ? random.below(numContexts) : next[place];
  }
}

function chooseAction(p: Float64Array, row: number, numActions: number, uniform: number): number {
  let rest = uniform;
  for (let a = 0; a < numActions - 1; a++) {
    rest -= p[row + a];
    if (rest < 0) return a;
  }
  return numActions - 1;
}
