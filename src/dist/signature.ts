/**
 * What a rank says about the collective it is calling, in 32 bytes ahead of its payload.
 *
 * Little-endian: u32 magic, u32 operation, u64 sequence number, u64 payload bytes,
 * u32 `element type | reduction << 8 | root << 16`, u32 hash of the tag. Ranks compare all of them, so
 * ranks that disagree fail together instead of reading each other's bytes wrongly.
 */

/** Bytes of a signature. */
export const SIGNATURE_BYTES = 32;

/** Operations; the index is the number sent. */
export const collectiveOps = [
  'barrier',
  'broadcast',
  'allReduce',
  'allGather',
  'allGatherV',
  'subgroup',
  'allReduceTensors',
] as const;

/** One of {@link collectiveOps}. */
export type CollectiveOp = (typeof collectiveOps)[number];

/** The call that a signature describes. */
export interface CallSignature {
  readonly op: CollectiveOp;
  readonly seq: number;
  /** Bytes that must be equal on all ranks; 0 where each rank may send its own number. */
  readonly bytes: number;
  /** Number of the element type. */
  readonly dtype: number;
  /** Number of the reduction, or 0. */
  readonly reduction: number;
  /** Rank that broadcasts, or 0. */
  readonly root: number;
  readonly tag: string;
}

// "VARL", read as a little-endian u32.
const magic = 0x4c524156;

/** A message: the signature, then the payload. */
export function encodeMessage(signature: CallSignature, payload: Uint8Array): Uint8Array {
  const message = new Uint8Array(SIGNATURE_BYTES + payload.length);
  // Byte by byte: asking a short array for its buffer would move it off the JavaScript heap.
  writeWord(message, 0, magic);
  writeWord(message, 4, collectiveOps.indexOf(signature.op));
  writeWord(message, 8, signature.seq);
  writeWord(message, 12, Math.floor(signature.seq / 4294967296));
  writeWord(message, 16, signature.bytes);
  writeWord(message, 20, Math.floor(signature.bytes / 4294967296));
  writeWord(message, 24, signature.dtype | (signature.reduction << 8) | (signature.root << 16));
  writeWord(message, 28, signature.tag === '' ? 0 : fnv1a(signature.tag));
  message.set(payload, SIGNATURE_BYTES);
  return message;
}

function writeWord(message: Uint8Array, at: number, word: number): void {
  message[at] = word;
  message[at + 1] = word >>> 8;
  message[at + 2] = word >>> 16;
  message[at + 3] = word >>> 24;
}

/** The rank whose signature differs from rank 0's, with a description of each rank's call; or undefined. */
export function findMismatch(messages: readonly Uint8Array[]): { rank: number; calls: string[] } | undefined {
  const first = messages[0];
  for (let rank = 1; rank < messages.length; rank++) {
    for (let i = 0; i < SIGNATURE_BYTES; i++) {
      if (messages[rank][i] !== first[i]) return { rank, calls: messages.map(describe) };
    }
  }
  return undefined;
}

function describe(message: Uint8Array): string {
  if (message.length < SIGNATURE_BYTES) return 'no varlen message';
  const view = new DataView(message.buffer, message.byteOffset, SIGNATURE_BYTES);
  if (view.getUint32(0, true) !== magic) return 'no varlen message';
  const op = collectiveOps[view.getUint32(4, true)] ?? 'unknown';
  const seq = view.getUint32(8, true) + view.getUint32(12, true) * 4294967296;
  const bytes = view.getUint32(16, true) + view.getUint32(20, true) * 4294967296;
  const detail = view.getUint32(24, true);
  const tag = view.getUint32(28, true).toString(16);
  return `${op} #${seq} of ${bytes} bytes (type ${detail & 255}, reduction ${(detail >> 8) & 255}, root ${detail >>> 16}, tag ${tag})`;
}

/** FNV-1a over UTF-16 code units (Fowler, Noll, Vo). */
function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash;
}
