/** Rewards of reasoning by drawing on images over several turns (ViLaSR, its code). */
import { checkBoolean, readOptions, wrongType } from '../../check.js';
import { checkNumber, checkWord } from '../check-arrays.js';
import { readPythonLiteral } from './python-literal.js';
import { checkText } from './text-similarity.js';

/** Something the model drew. Coordinates in pixels or as the prompt asked. */
export type Drawing =
  | { readonly kind: 'box'; readonly label: string; readonly box: readonly number[]; readonly turn: number }
  | {
      readonly kind: 'line';
      readonly label: string;
      readonly start: readonly number[];
      readonly end: readonly number[];
      readonly turn: number;
    };

/** What the turns of a response say. */
export interface DrawingTurns {
  /** 1 when every turn has its form and every drawing parses, else 0. */
  readonly format: 0 | 1;
  /** The first thing that is wrong; null when nothing is. */
  readonly reason: string | null;
  /** The drawings that parsed, in order. */
  readonly drawings: readonly Drawing[];
  /** 1 when a label was drawn again with another box: the model looked again. */
  readonly reflection: 0 | 1;
  /** Between the answer tags of the last turn, trimmed; null without them. */
  readonly answer: string | null;
}

/** Options of {@link parseDrawingTurns}. */
export interface DrawingOptions {
  /** Also accept Python's way of writing lists and dictionaries, as the published code does. Default false. */
  lenient?: boolean;
}

/** One turn: a thought, then an action. */
const TURN = /^<think>.*<\/think>\s*Action:.*\S.*$/s;
const ANSWER = /<answer>(.*?)<\/answer>/s;
const ANSWER_TAG = /<\/?answer>/;

/**
 * Reads the turns of one response.
 *
 * Every turn must be `<think>...</think>` and `Action: ...`; the last one, and no other, has its answer
 * between `<answer>` tags. Drawings stand in blocks that open with a line `` ```json `` and hold objects
 * with `bbox_2d` (four numbers) and `label`, or `start_point_2d`, `end_point_2d` (two each) and `label`.
 * Malformed turns are a result, not an error.
 *
 * Throws `ERR_VARLEN_TYPE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * parseDrawingTurns(['<think>easy</think> Action: <answer>B</answer>']).format; // 1
 */
export function parseDrawingTurns(turns: readonly string[], options: DrawingOptions = {}): DrawingTurns {
  const op = 'parseDrawingTurns';
  if (!Array.isArray(turns)) throw wrongType(op, 'turns', turns, 'an array of strings');
  const { lenient = false } = readOptions(op, options, ['lenient']);
  checkBoolean(op, 'lenient', lenient);
  const faults: string[] = turns.length === 0 ? ['there is no turn'] : [];
  const drawings: Drawing[] = [];
  turns.forEach((text, turn) => {
    checkText(op, `turns[${turn}]`, text);
    const last = turn === turns.length - 1;
    if (!TURN.test(text)) faults.push(`turn ${turn} is not a thought and an action`);
    if (last && !ANSWER.test(text)) faults.push('the last turn has no answer');
    if (!last && ANSWER_TAG.test(text)) faults.push(`turn ${turn} has an answer before the last turn`);
    for (const block of jsonBlocks(text)) {
      const items = block === null ? undefined : readItems(block, lenient);
      if (items === undefined) {
        faults.push(`turn ${turn} has a block that does not parse`);
        continue;
      }
      for (const item of items) {
        const drawing = readDrawing(item, turn);
        if (drawing === undefined) faults.push(`turn ${turn} has a drawing without its fields`);
        else drawings.push(drawing);
      }
    }
  });
  const answer = ANSWER.exec(turns[turns.length - 1] ?? '');
  return Object.freeze({
    format: faults.length === 0 ? 1 : 0,
    reason: faults[0] ?? null,
    drawings: Object.freeze(drawings),
    reflection: looksAgain(drawings) ? 1 : 0,
    answer: answer === null ? null : answer[1].trim(),
  });
}

/** Contents of the fenced blocks of a turn; null for one that never closes. */
function jsonBlocks(text: string): (string | null)[] {
  const blocks: (string | null)[] = [];
  let open: string[] | undefined;
  for (const line of text.split(/\r?\n/)) {
    const fence = line.trim();
    if (open === undefined) {
      if (fence === '```json') open = [];
    } else if (fence === '```') {
      blocks.push(open.join('\n'));
      open = undefined;
    } else open.push(line);
  }
  if (open !== undefined) blocks.push(null);
  return blocks;
}

function readItems(block: string, lenient: boolean): unknown[] | undefined {
  let value: unknown;
  try {
    value = JSON.parse(block);
  } catch {
    value = lenient ? readPythonLiteral(block) : undefined;
  }
  if (value === undefined) return undefined;
  return Array.isArray(value) ? value : [value];
}

function readDrawing(item: unknown, turn: number): Drawing | undefined {
  if (typeof item !== 'object' || item === null) return undefined;
  const { label, bbox_2d: box, start_point_2d: start, end_point_2d: end } = item as Record<string, unknown>;
  if (typeof label !== 'string') return undefined;
  if (isCoordinates(box, 4)) return Object.freeze({ kind: 'box', label, box, turn });
  if (isCoordinates(start, 2) && isCoordinates(end, 2)) {
    return Object.freeze({ kind: 'line', label, start, end, turn });
  }
  return undefined;
}

function isCoordinates(value: unknown, count: number): value is number[] {
  return Array.isArray(value) && value.length === count && value.every(Number.isFinite);
}

function looksAgain(drawings: readonly Drawing[]): boolean {
  const first = new Map<string, string>();
  return drawings.some((drawing) => {
    if (drawing.kind !== 'box') return false;
    const box = drawing.box.join();
    const before = first.get(drawing.label);
    if (before === undefined) first.set(drawing.label, box);
    return before !== undefined && before !== box;
  });
}

/** Options of {@link meanRelativeAccuracy}. */
export interface RelativeAccuracyOptions {
  /** Also count an error that equals its bound, as evaluations do. Default false. */
  inclusive?: boolean;
}

/**
 * Mean relative accuracy, in [0, 1]: the share of the thresholds 0.50, 0.55, ... 0.95 for which
 * `|prediction - target| / (|target| + 1e-8) < 1 - threshold` (VSI-Bench). In float32, as published.
 *
 * Throws `ERR_VARLEN_TYPE` and `ERR_VARLEN_RANGE`.
 *
 * @example
 * meanRelativeAccuracy(12.4, 10); // 0.6
 */
export function meanRelativeAccuracy(
  prediction: number,
  target: number,
  options: RelativeAccuracyOptions = {},
): number {
  const op = 'meanRelativeAccuracy';
  checkNumber(op, 'prediction', prediction);
  checkNumber(op, 'target', target);
  const { inclusive = false } = readOptions(op, options, ['inclusive']);
  checkBoolean(op, 'inclusive', inclusive);
  const f32 = Math.fround;
  const error = f32(f32(Math.abs(f32(prediction - target))) / f32(f32(Math.abs(target)) + f32(1e-8)));
  let passed = 0;
  for (let percent = 50; percent <= 95; percent += 5) {
    const bound = f32(1 - f32(percent / 100));
    if (inclusive ? error <= bound : error < bound) passed += 1;
  }
  return passed / 10;
}

/** One response and what it should say. */
export interface DrawingResponse {
  /** What the model wrote, turn by turn. */
  readonly turns: readonly string[];
  readonly target: string;
  /** `choice`: the answer equals the target. `number`: {@link meanRelativeAccuracy} of the first numbers. */
  readonly answerKind: 'choice' | 'number';
}

/** Reward of {@link drawingReward} and its parts. */
export interface DrawingReward {
  /** `0.5 accuracy + 0.5 format` when the answer has any accuracy, else 0. */
  readonly reward: number;
  readonly accuracy: number;
  readonly format: 0 | 1;
  /** Reported, not added: what {@link reflectiveRejection} selects by. */
  readonly reflection: 0 | 1;
}

/**
 * Reward of one response of several turns, in [0, 1]. Put it on the response's last token; tokens of tool
 * images carry no loss.
 *
 * Throws `ERR_VARLEN_TYPE` and `ERR_VARLEN_OPTION`.
 *
 * @example
 * const turns = ['<think>easy</think> Action: <answer>9</answer>'];
 * drawingReward({ turns, target: '10', answerKind: 'number' }).reward; // 0.95
 */
export function drawingReward(response: DrawingResponse, options: DrawingOptions = {}): DrawingReward {
  const op = 'drawingReward';
  const { turns, target, answerKind } = response;
  checkText(op, 'target', target);
  checkWord(op, 'answerKind', answerKind, ['choice', 'number']);
  const { format, reflection, answer } = parseDrawingTurns(turns, options);
  const accuracy = answer === null ? 0 : accuracyOf(answer, target, answerKind);
  const reward = accuracy > 0 ? 0.5 * accuracy + 0.5 * format : 0;
  return Object.freeze({ reward, accuracy, format, reflection });
}

function accuracyOf(answer: string, target: string, kind: DrawingResponse['answerKind']): number {
  if (kind === 'choice') return answer === target.trim() ? 1 : 0;
  const [prediction, wanted] = [answer, target].map(
    (text) => /[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?/.exec(text)?.[0],
  );
  if (prediction === undefined || wanted === undefined) return 0;
  const numbers = [Number(prediction), Number(wanted)] as const;
  return numbers.every(Number.isFinite) ? meanRelativeAccuracy(...numbers) : 0;
}
