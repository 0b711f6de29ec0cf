/** Numbers the groups of a batch: any integers become `0 .. numGroups - 1`. */

/** Groups in the order of their first member. */
export interface GroupIndex {
  /** `[numSeqs]` */
  readonly groupOf: Int32Array;
  readonly numGroups: number;
}

/** Group of every sequence, in order of first appearance. Members need not be neighbours. */
export function groupIndex(groupIds: Int32Array): GroupIndex {
  const groupOf = new Int32Array(groupIds.length);
  let current = -1;
  for (let i = 0; i < groupIds.length; i++) {
    // Ids that only rise, the usual order, need no look-up.
    if (i > 0 && groupIds[i] < groupIds[i - 1]) return indexInAnyOrder(groupIds, groupOf);
    if (i === 0 || groupIds[i] !== groupIds[i - 1]) current += 1;
    groupOf[i] = current;
  }
  return { groupOf, numGroups: current + 1 };
}

function indexInAnyOrder(groupIds: Int32Array, groupOf: Int32Array): GroupIndex {
  const index = new Map<number, number>();
  for (let i = 0; i < groupIds.length; i++) {
    const known = index.get(groupIds[i]);
    groupOf[i] = known ?? index.size;
    if (known === undefined) index.set(groupIds[i], index.size);
  }
  return { groupOf, numGroups: index.size };
}
