/** Prints a late failure and where its tensor was made. */
import type { VarlenError } from '../../../src/index.js';
import { failing } from '../../support/failing.js';

function callerOfTheOp() {
  return failing();
}

callerOfTheOp()
  .data()
  .catch((error: VarlenError) => {
    const cause = error.cause as Error;
    console.log(JSON.stringify({ code: error.code, stack: cause.stack }));
  });
