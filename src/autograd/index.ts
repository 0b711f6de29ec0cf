export { noGrad } from './no-grad.js';
