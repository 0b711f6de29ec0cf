/** The policy that RL began with, from which the KL penalty keeps the trained one. */
import { CausalLM } from '../../nn/index.js';

/** A copy of a model that nothing trains; disposing it leaves the model alone. */
export function frozenCopy(model: CausalLM): CausalLM {
  const parameters = new Map(model.parameters());
  return CausalLM.from(model.config, (name) => parameters.get(name)!.copy().outlive(), model.device);
}
