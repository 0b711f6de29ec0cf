import { argumentError, varlenError } from '../errors.js';
import { accumulate } from '../native/binding.js';
import type { DType } from './dtype.js';
import { scope } from './lifetime.js';
import type { Tensor } from './tensor.js';

/**
 * What happened, so that it can be differentiated. An op that read a tracked tensor leaves a node here;
 * `backward()` walks the nodes from the last to the first.
 */

/** Gradients of an op's inputs from those of its outputs; each one is new, `undefined` where none flows. */
export type BackwardFn = (gradients: readonly (Tensor | undefined)[]) => readonly (Tensor | undefined)[];

/** Where an input's gradient goes: to a parameter, or on to the node that made the input. */
type Edge = { readonly leaf: Tensor } | { readonly node: TapeNode; readonly output: number } | undefined;

/** One recorded call. It holds no tensor of the user's but the leaves: those may be disposed freely. */
export interface TapeNode {
  readonly op: string;
  /** Position in the order of calls. */
  readonly order: number;
  /** Element types of its outputs. */
  readonly outputs: readonly DType[];
  edges: readonly Edge[];
  saved: readonly Disposable[];
  /** `undefined` once the node is freed. */
  backward: BackwardFn | undefined;
  /** Outputs not yet disposed, and nodes that read them: without any, nobody can ask for gradients. */
  users: number;
}

let nextOrder = 0;
let recording = true;

/** Switches recording and returns what it was. `noGrad` is the public form. */
export function setRecording(on: boolean): boolean {
  const before = recording;
  recording = on;
  return before;
}

/** False inside `noGrad` and during backward. */
export function recordingOn(): boolean {
  return recording;
}

/** True when a call on these inputs must be recorded. */
export function isTracked(inputs: readonly (Tensor | undefined)[]): boolean {
  return recording && inputs.some((input) => input?.requiresGrad);
}

/** Refuses tracked inputs on behalf of an op that has no backward. */
export function refuseTracked(op: string, inputs: readonly (Tensor | undefined)[]): void {
  if (!isTracked(inputs)) return;
  throw varlenError(
    'ERR_VARLEN_NO_BACKWARD',
    `${op}: has no backward; got a tensor that requires a gradient, expected a detached one (tensor.detach(), noGrad)`,
    { op },
  );
}

/** Where the gradient of a tensor goes. */
function edgeTo(tensor: Tensor | undefined): Edge {
  if (!tensor?.requiresGrad) return undefined;
  return tensor.source ?? { leaf: tensor };
}

/**
 * The tape's own names for tensors that backward reads, since the caller may dispose theirs; they live
 * until their node is freed. When that fails, `outputs` are disposed with them.
 */
export function keep<const T extends readonly (Tensor | undefined)[]>(
  tensors: T,
  outputs: readonly Tensor[],
): { readonly [K in keyof T]: T[K] } {
  const names: Tensor[] = [];
  try {
    const own = tensors.map((tensor) => {
      if (tensor === undefined) return undefined;
      const name = tensor.alias().outlive();
      names.push(name);
      return name;
    });
    return own as unknown as { readonly [K in keyof T]: T[K] };
  } catch (error) {
    for (const tensor of [...names, ...outputs]) tensor.dispose();
    throw error;
  }
}

/**
 * Records a call. `saved` are handles of the node's own; they are disposed once backward has used them.
 */
export function record(
  op: string,
  inputs: readonly (Tensor | undefined)[],
  outputs: readonly Tensor[],
  saved: readonly Disposable[],
  backward: BackwardFn,
): void {
  const edges = inputs.map(edgeTo);
  for (const node of nodesOf(edges)) node.users++;
  const dtypes = outputs.map(({ dtype }) => dtype);
  const users = outputs.length;
  const node: TapeNode = { op, order: nextOrder++, outputs: dtypes, edges, saved, backward, users };
  for (const [output, tensor] of outputs.entries()) tensor.track({ node, output });
}

/** The nodes that edges lead to, one per edge. */
function nodesOf(edges: readonly Edge[]): TapeNode[] {
  const nodes: TapeNode[] = [];
  for (const edge of edges) if (edge !== undefined && 'node' in edge) nodes.push(edge.node);
  return nodes;
}

/** Gives up what a node saved; returns the nodes it read from, which have one user less. */
function free(node: TapeNode): TapeNode[] {
  const read = nodesOf(node.edges);
  for (const saved of node.saved) saved[Symbol.dispose]();
  node.backward = undefined;
  node.edges = [];
  node.saved = [];
  for (const other of read) other.users--;
  return read;
}

/** Frees those nodes that nobody uses, and then those that only they used. */
function freeUnused(nodes: readonly TapeNode[]): void {
  const unused = [...nodes];
  for (const node of unused) {
    // What this frees, the loop then visits too.
    if (node.users === 0 && node.backward !== undefined) unused.push(...free(node));
  }
}

/** An output of `node` is gone. */
export function dropNode(node: TapeNode): void {
  node.users--;
  freeUnused([node]);
}

/** Nodes that these were computed from, themselves included, latest first. */
function reachable(last: readonly TapeNode[]): TapeNode[] {
  const seen = new Set<TapeNode>(last);
  for (const node of seen) {
    for (const next of nodesOf(node.edges)) seen.add(next);
  }
  return [...seen].sort((a, b) => b.order - a.order);
}

/** Gradients that name the same memory as another one, which may not be added to. */
const shared = new WeakSet<Tensor>();

/** The one gradient that two inputs have, twice, for an op's backward to return; `gradient` stays the caller's. */
export function shareGradient(gradient: Tensor): [first: Tensor, second: Tensor] {
  const pair: [Tensor, Tensor] = [gradient.alias(), gradient.alias()];
  for (const one of pair) shared.add(one);
  return pair;
}

/** Another view of a gradient, for an op's backward to return in its place. */
export function passOn(gradient: Tensor, view: Tensor): Tensor {
  if (shared.has(gradient)) shared.add(view);
  return view;
}

/** `sum + gradient`, consuming both. The order of the additions is the order of the walk. */
function add(sum: Tensor, gradient: Tensor): Tensor {
  const own = shared.has(sum) ? sum.copy() : sum;
  accumulate(own.handle, gradient.handle);
  gradient.dispose();
  if (own !== sum) sum.dispose();
  return own;
}

/**
 * Ops give the gradient of a parameter in float32. Where a 16-bit result of another op stood in its place
 * (rows that `embedding` picks, say), the sum is rounded once to what that op's backward reads.
 */
function roundToOutputs({ outputs }: TapeNode, gradients: (Tensor | undefined)[]): void {
  for (const [i, gradient] of gradients.entries()) {
    if (gradient === undefined || gradient.dtype === outputs[i]) continue;
    gradients[i] = gradient.copy(outputs[i]);
    gradient.dispose();
  }
}

/** Parameters keep their gradient in float32 whatever their own element type. */
function addToLeaf(leaf: Tensor, gradient: Tensor): void {
  if (leaf.disposed) {
    gradient.dispose();
  } else if (leaf.grad !== null && !leaf.grad.disposed) {
    accumulate(leaf.grad.handle, gradient.handle);
    gradient.dispose();
  } else if (gradient.dtype === 'float32' && !shared.has(gradient)) {
    leaf.grad = gradient.outlive();
  } else {
    leaf.grad = gradient.copy('float32').outlive();
    gradient.dispose();
  }
}

/** Who wants to know that a parameter has its gradient. */
const leafHooks = new WeakMap<Tensor, () => void>();

/**
 * Calls `hook` during a backward as soon as it has brought `leaf` all its gradients: the rest of the walk
 * goes on, and what the hook enqueues runs between. A leaf that the backward reaches without a gradient
 * gets its call at the end. One hook a leaf; `undefined` takes it off.
 */
export function setLeafHook(leaf: Tensor, hook: (() => void) | undefined): void {
  if (hook === undefined) leafHooks.delete(leaf);
  else leafHooks.set(leaf, hook);
}

/**
 * Leaves with hooks that walks inside the current one have reached: a checkpointed part of the graph is
 * walked while its node is. `undefined` outside every walk.
 */
let reachedInside: Set<Tensor> | undefined;

/** How many gradients each leaf with a hook may get from these nodes. */
function countGradients(nodes: readonly TapeNode[]): Map<Tensor, number> {
  const counts = new Map<Tensor, number>();
  for (const { edges } of nodes) {
    for (const edge of edges) {
      if (edge === undefined || !('leaf' in edge) || !leafHooks.has(edge.leaf)) continue;
      counts.set(edge.leaf, (counts.get(edge.leaf) ?? 0) + 1);
    }
  }
  return counts;
}

/** Where backward starts: a result, and its gradient, which is consumed. */
export interface Root {
  readonly output: Tensor;
  readonly gradient: Tensor;
}

/** What of the graph a walk from these edges passes, latest first; refuses a graph that was used up. */
function plan(op: string, edges: readonly Edge[]): TapeNode[] {
  const nodes = reachable(nodesOf(edges));
  const used = nodes.find((node) => node.backward === undefined);
  if (used === undefined) return nodes;
  throw varlenError(
    'ERR_VARLEN_GRAPH_FREED',
    `${op}: the graph was freed by an earlier backward (at ${used.op}); pass { retainGraph: true } there to keep it`,
    { op, freedAt: used.op },
  );
}

/**
 * Fills `grad` of every parameter that `last` was computed from.
 *
 * @param gradient makes the gradient of `last`, once it is known that it has a graph
 * @throws `ERR_VARLEN_GRAPH_FREED` when an earlier backward without `retainGraph` used the graph up
 */
export function backward(op: string, last: Tensor, gradient: () => Tensor, retainGraph: boolean): void {
  const { source } = last;
  if (source === undefined) {
    throw argumentError(
      'ERR_VARLEN_MISSING_INPUT',
      op,
      'this',
      'was computed from nothing that requires a gradient; expected a result of tracked tensors',
    );
  }
  const nodes = plan(op, [source]);
  walkBack(nodes, () => [[source, gradient()]], retainGraph);
}

/** The same from several results at once; those that need no gradient give theirs up. */
export function backwardFrom(op: string, roots: readonly Root[], retainGraph: boolean): void {
  const edges = roots.map(({ output }) => edgeTo(output));
  const nodes = plan(op, edges);
  walkBack(nodes, () => roots.map(({ gradient }, i) => [edges[i], gradient]), retainGraph);
}

function walkBack(
  nodes: readonly TapeNode[],
  start: () => readonly (readonly [Edge, Tensor])[],
  retainGraph: boolean,
): void {
  const gradients = new Map<TapeNode, (Tensor | undefined)[]>();
  const outer = reachedInside;
  const expected = countGradients(nodes);
  // What a checkpoint holds is not among the nodes: its leaves may get more until the very end.
  const early = outer === undefined && !nodes.some((node) => node.op === 'checkpoint');
  const give = (edge: Edge, value: Tensor): void => {
    if (edge === undefined) {
      value.dispose();
      return;
    }
    if ('leaf' in edge) {
      addToLeaf(edge.leaf, value);
      const left = expected.get(edge.leaf);
      if (left !== undefined) expected.set(edge.leaf, left - 1);
      if (left === 1 && early) {
        expected.delete(edge.leaf);
        leafHooks.get(edge.leaf)?.();
      }
      return;
    }
    let slots = gradients.get(edge.node);
    if (slots === undefined) {
      slots = new Array(edge.node.outputs.length).fill(undefined);
      gradients.set(edge.node, slots);
    }
    const sum = slots[edge.output];
    slots[edge.output] = sum === undefined ? value : add(sum, value);
  };
  const inside = outer ?? new Set<Tensor>();
  reachedInside = inside;
  const before = setRecording(false);
  const walk = (): void => {
    for (const [edge, gradient] of start()) give(edge, gradient);
    for (const node of nodes) {
      const slots = gradients.get(node);
      if (slots !== undefined) {
        roundToOutputs(node, slots);
        const inputs = node.backward!(slots);
        for (const [i, value] of inputs.entries()) {
          if (value !== undefined) give(node.edges[i], value);
        }
        for (const slot of slots) slot?.dispose();
        gradients.delete(node);
      }
      if (!retainGraph) free(node);
    }
    if (outer !== undefined) {
      for (const leaf of expected.keys()) outer.add(leaf);
      return;
    }
    for (const leaf of new Set([...expected.keys(), ...inside])) leafHooks.get(leaf)?.();
  };
  try {
    scope(walk); // frees what a failure leaves behind
  } catch (error) {
    freeUnused(nodes);
    throw error;
  } finally {
    reachedInside = outer;
    setRecording(before);
  }
}
