/** What `call` throws; fails the test when it returns. */
export function thrown(call: () => unknown): unknown {
  let result: unknown;
  try {
    result = call();
  } catch (error) {
    return error;
  }
  throw new Error(`expected a throw, got ${String(result)}`);
}

/** What `promise` rejects with; fails the test when it resolves. */
export async function rejected(promise: PromiseLike<unknown>): Promise<unknown> {
  let result: unknown;
  try {
    result = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`expected a rejection, got ${String(result)}`);
}
