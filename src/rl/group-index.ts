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
  const index = new Map<number, number>();
  let previous = Number.NaN; // runs of one id, the usual order, need no look-up
  let current = -1;
  for (let i = 0; i < groupIds.length; i++) {
    const id = groupIds[i];
    if (id !== previous) {
      previous = id;
      const known = index.get(id);
      current = known ?? index.size;
      if (known === undefined) index.set(id, current);
    }
    groupOf[i] = current;
  }
  return { groupOf, numGroups: index.size };
}
