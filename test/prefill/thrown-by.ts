/** The code that a promise rejects with. */
export async function thrownBy(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return (error as { code: string }).code;
  }
  return 'nothing thrown';
}
