/** Laying sequences into bins, and dealing costs out evenly. */
export { batchBySize } from './batch-by-size.js';
export { type MicroBatchOptions, microBatches } from './micro-batches.js';
export { type PackAlgo, type PackOptions, pack, packAlgos, packPieces } from './pack.js';
export { fillOf, type Packing } from './packing.js';
export { type PartitionOptions, partition } from './partition.js';
