import { checkInteger, describe, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { sparsePrefill, sparsePrefillBackward } from '../ops/sparse-prefill.js';
import { Tensor } from '../tensor/index.js';
import { type ModalityLayout, modalityNames, readModalities } from './modality.js';
import { planPrefill } from './plan.js';

/** A shorter prompt for a device that goes on where a cloud began: what the last queries look at. */

/**
 * The attention mass that each key draws from the last queries, summed over them and over the query heads of its
 * key/value head: what verticals are chosen by.
 *
 * @param q `[queries, numHeads, headDim]`, the last rows of one sequence
 * @param k `[tokens, numKvHeads, headDim]`, all its keys
 * @returns `[tokens, numKvHeads]`, row by row; each column adds up to queries times heads of the group
 * @throws `ERR_VARLEN_TYPE`, and what `planPrefill` throws
 *
 * @example
 * ```ts
 * using last = q.slice(0, tokens - 64, tokens);
 * const mass = await attentionMass(last, k);
 * ```
 */
export async function attentionMass(q: Tensor, k: Tensor): Promise<Float32Array> {
  const op = 'attentionMass';
  for (const [name, tensor] of Object.entries({ q, k })) {
    if (!(tensor instanceof Tensor)) throw wrongType(op, name, tensor, 'a Tensor');
  }
  const [queries, tokens] = [q.shape[0], k.shape[0]];
  const lengths = { cuSeqlensQ: Int32Array.of(0, queries), cuSeqlensK: Int32Array.of(0, tokens) };
  using plan = planPrefill({ heads: { kind: 'dense' } }, q, k, lengths);
  const { dtype, device } = q;
  // dv is the transposed probabilities times dOut: ones there read their sums. Eight is the smallest width.
  const width = 8;
  const filled = (rows: number, heads: number, value: number): Tensor =>
    Tensor.from(new Float32Array(rows * heads * width).fill(value), {
      shape: [rows, heads, width],
      dtype,
      device,
    });
  using v = filled(tokens, k.shape[1], 0);
  using dOut = filled(queries, q.shape[1], 1);
  using queryRows = q.detach();
  using keyRows = k.detach();
  using result = sparsePrefill(plan, queryRows, keyRows, v);
  const { out, softmaxLse } = result;
  using gradients = sparsePrefillBackward(plan, { q, k, v, out, softmaxLse, dOut });
  const sums = await gradients.dv.toFloat32();
  return Float32Array.from({ length: sums.length / width }, (_, i) => sums[i * width]);
}

/** Options of {@link refinePrompt}. */
export interface RefineOptions {
  /** First tokens that always stay. Default 4. */
  readonly sinks?: number;
  /** Last tokens that always stay. Default 64. */
  readonly last?: number;
  /** Share of each modality's mass that the kept tokens hold, in (0, 1]. Default 0.9. */
  readonly coverage?: number;
  readonly modality?: ModalityLayout;
}

/**
 * Positions of a prompt that are worth reading, ascending: the sinks, the last tokens, and of each modality the
 * tokens that draw most attention, until they hold `coverage` of it.
 *
 * @param mass attention mass of each token, `[tokens]`: {@link attentionMass}, added up over heads
 * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_MODALITY`
 *
 * @example
 * ```ts
 * refinePrompt([9, 0, 1, 0, 4, 0, 1], { sinks: 1, last: 1, coverage: 0.8 }); // Int32Array [0, 4, 6]
 * ```
 */
export function refinePrompt(mass: ArrayLike<number>, options?: RefineOptions): Int32Array {
  const op = 'refinePrompt';
  const known = readOptions(op, options, ['sinks', 'last', 'coverage', 'modality']);
  const { sinks = 4, last = 64, coverage = 0.9, modality } = known;
  checkInteger(op, 'sinks', sinks, 0);
  checkInteger(op, 'last', last, 0);
  if (typeof coverage !== 'number' || !(coverage > 0 && coverage <= 1)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      'coverage',
      `is out of range; got ${describe(coverage)}, expected in (0, 1]`,
    );
  }
  const tokens = mass.length;
  const layouts = modality === undefined ? [] : [modality];
  const names = modalityNames(op, layouts);
  const ids = modality && readModalities(op, 'modality', modality, names, tokens).ids;
  const kept = new Uint8Array(tokens).fill(1, 0, Math.min(sinks, tokens)).fill(1, Math.max(0, tokens - last));
  for (let id = 0; id < Math.max(1, names.length); id++) {
    const own = Array.from({ length: tokens }, (_, x) => x).filter((x) => ids === undefined || ids[x] === id);
    const weight = (x: number): number => Math.max(0, mass[x]) || 0; // NaN last
    own.sort((a, b) => weight(b) - weight(a) || a - b);
    const total = own.reduce((sum, x) => sum + weight(x), 0);
    let held = 0;
    for (const x of own) {
      // The tolerance of coverage everywhere: sums that rounding alone leaves short ask for no more.
      if (held >= coverage * total - 1e-6 * total) break;
      kept[x] = 1;
      held += weight(x);
    }
  }
  return Int32Array.from(Array.from({ length: tokens }, (_, x) => x).filter((x) => kept[x] === 1));
}
