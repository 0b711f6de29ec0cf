// Data-parallel training with uneven data: `tsx examples/multi-rank.ts` starts two ranks of itself. The same
// script runs under `torchrun --no-python`, Slurm or mpirun, whose variables `init()` reads.
import {
  AdamW,
  CausalLM,
  crossEntropyFromHidden,
  DynamicBatcher,
  GradientSync,
  init,
  launch,
  scope,
  Tensor,
} from 'varlen';

/** Each rank has data of its own; the later the rank, the more of it. */
function* shard(rank: number) {
  for (let i = 0; i < 60 * (rank + 1); i++) {
    const inputIds = Int32Array.from({ length: 6 + ((i * 13 + rank) % 50) }, (_, t) => (i + t) % 12);
    yield { id: `${rank}/${i}`, inputIds };
  }
}

async function train() {
  await using group = await init();
  const sizes = { hiddenSize: 16, intermediateSize: 32, numLayers: 1, numHeads: 2 };
  using model = CausalLM.create({ ...sizes, vocabSize: 12, initializerRange: 0.1 }, { device: 'cpu' });
  using optimizer = new AdamW([{ params: model.parameters() }], { lr: 5e-3 });
  const parameters = Array.from(model.parameters(), ([, tensor]) => tensor);
  const sync = await GradientSync.create(parameters, { group });
  const batcher = new DynamicBatcher(shard(group.rank), {
    budget: { packedTokens: 512 },
    window: 32,
    group: await group.subgroup([...Array(group.size).keys()]), // metadata never mixes with gradients
    collateOptions: { labels: 'shifted' },
  });
  let [steps, samples] = [0, 0];
  for await (const { batch, info, ids } of batcher) {
    sync.begin();
    // A rank that has run dry takes part with nothing.
    if (!info.idle) {
      scope(() => {
        const lossMask = Tensor.from(batch.lossMask, { device: 'cpu' });
        const options = { lossMask, scale: info.lossScale };
        crossEntropyFromHidden(
          model.forward(rows(batch)),
          model.headWeight,
          batch.labels,
          options,
        ).loss.backward();
      });
    }
    await sync.finish();
    optimizer.step();
    optimizer.zeroGrad();
    steps++;
    samples += ids.length;
  }
  const norm = ((await parameters[0].data()) as Float32Array).reduce((sum, x) => sum + x * x, 0);
  const all = await group.allReduce(Float64Array.of(samples, group.rank === 0 ? norm : 0), 'sum');
  const equal = all[1] === norm ? 'equal' : 'different';
  console.log(`rank ${group.rank}: ${steps} steps, ${samples} of ${all[0]} samples, weights ${equal}`);
  await sync.close();
}

const rows = ({
  inputIds,
  positionIds,
  cuSeqlens,
}: {
  inputIds: Int32Array;
  positionIds: Int32Array;
  cuSeqlens: Int32Array;
}) => ({ inputIds, positionIds, cuSeqlens });

async function main() {
  if (process.env.WORLD_SIZE !== undefined) return await train();
  const { exitCode } = await launch({ nproc: 2, env: { VARLEN_NUM_THREADS: '1' } });
  process.exitCode = exitCode;
}

void main();
