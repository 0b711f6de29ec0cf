import fc from 'fast-check';
import type { HeadPattern } from '../../src/prefill/index.js';

/** Patterns of every kind for a sequence of so many queries and keys. */

const widths = fc.integer({ min: 1, max: 90 });
const sinks = fc.integer({ min: 0, max: 20 });

function ascending(below: number, maxLength = 8): fc.Arbitrary<Int32Array> {
  return fc
    .uniqueArray(fc.integer({ min: 0, max: below }), { maxLength })
    .map((list) => Int32Array.from(list).sort());
}

const gridFlags = fc
  .record({ hline: fc.boolean(), vline: fc.boolean(), slash: fc.boolean() })
  .filter(({ hline, vline, slash }) => hline || vline || slash);

/** Patterns that need no modality layout and hold no other pattern. */
export function leafPatterns(queries: number, keys: number): fc.Arbitrary<HeadPattern> {
  return fc.oneof(
    fc.constant<HeadPattern>({ kind: 'dense' }),
    fc.record({ kind: fc.constant('a-shape' as const), sink: sinks, local: widths }),
    fc.record({ kind: fc.constant('tri-shape' as const), sink: sinks, local: widths, last: sinks }),
    fc.record({ vertical: ascending(keys + 20), slash: ascending(keys + 20) }).map((lists) => ({
      kind: 'vertical-slash-fixed' as const,
      ...lists,
      slash: Int32Array.from(new Set([0, ...lists.slash])).sort(),
    })),
    fc
      .record({
        kind: fc.constant('vertical-slash' as const),
        select: fc.record({ topk: fc.record({ vertical: sinks, slash: sinks }) }),
        forceVertical: sinks,
        forceSlash: widths,
      })
      .map((p) => p as HeadPattern),
    fc.record({
      kind: fc.constant('block-sparse' as const),
      block: fc.tuple(fc.constantFrom(16, 32, 64, 128), fc.constantFrom(16, 32, 64)),
      score: fc.constantFrom('mean-pool' as const, 'antidiagonal' as const, 'js-switch' as const),
      select: fc.oneof(
        fc.record({ blocks: fc.integer({ min: 1, max: 3 }) }),
        fc.record({ coverage: fc.constant(0.5) }),
      ),
    }),
    fc.array(fc.boolean(), { minLength: 64, maxLength: 64 }).map((kept) => blockMask(queries, keys, kept)),
    fc
      .tuple(
        fc.integer({ min: 1, max: 40 }),
        fc.nat(),
        fc.nat(),
        gridFlags,
        sinks,
        widths,
        fc.nat(),
        fc.nat(),
      )
      .map(([stride, phase, hlinePhase, flags, sink, local, begin, length]) => ({
        kind: 'grid' as const,
        stride,
        phase: phase % stride,
        hlinePhase: hlinePhase % stride,
        ...flags,
        sink,
        local,
        span: [begin % (keys + 1), (begin % (keys + 1)) + (length % (keys + 1))] as const,
      })),
    fc
      .tuple(
        fc.array(fc.integer({ min: -1, max: 9 }), { minLength: keys, maxLength: keys }),
        ascending(9, 3),
        gridFlags,
        sinks,
        widths,
      )
      .map(([cell, lines, flags, sink, local]) => ({
        kind: 'cell-grid' as const,
        cell: Int32Array.from(cell),
        lines,
        ...flags,
        sink,
        local,
      })),
    fc.record({ kind: fc.constantFrom('sf-fixed' as const, 'sf-strided' as const), period: widths }),
  );
}

/** Blocks of 48 x 40 with the diagonal ones always kept, and an inner mask on every other case. */
function blockMask(queries: number, keys: number, kept: readonly boolean[]): HeadPattern {
  const [rows, columns] = [Math.ceil(queries / 48), Math.ceil(keys / 40)];
  const indptr = [0];
  const indices: number[] = [];
  let bits = 0;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      if (!kept[(r * 5 + c) % kept.length]) continue;
      indices.push(c);
      bits += Math.min(48, queries - r * 48) * Math.min(40, keys - c * 40);
    }
    indptr.push(indices.length);
  }
  const inner = kept[0] ? { inner: Uint8Array.from({ length: bits }, (_, i) => (i % 3 === 0 ? 0 : 1)) } : {};
  return {
    kind: 'block-mask',
    indptr: Int32Array.from(indptr),
    indices: Int32Array.from(indices),
    block: [48, 40],
    ...inner,
  };
}

/** Patterns of every kind, for sequences with two modalities. */
export function patterns(queries: number, keys: number): fc.Arbitrary<HeadPattern> {
  const leaf = leafPatterns(queries, keys);
  const inPair = leaf.filter(({ kind }) => !['block-sparse', 'block-mask', 'cell-grid'].includes(kind));
  return fc.oneof(
    { weight: 4, arbitrary: leaf },
    fc.array(leaf, { minLength: 1, maxLength: 3 }).map((of) => ({ kind: 'union' as const, of })),
    fc.tuple(leaf, leaf).map(([text, vision]) => ({ kind: 'q-boundary' as const, by: { text, vision } })),
    fc.tuple(inPair, inPair, inPair).map(([text, vision, cross]) => ({
      kind: '2d-boundary' as const,
      by: { 'text>text': text, 'vision>vision': vision, 'vision>text': cross },
    })),
  );
}
