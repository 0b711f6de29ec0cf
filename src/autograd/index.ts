export { checkpoint } from './checkpoint.js';
export { noGrad } from './no-grad.js';
