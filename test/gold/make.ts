// Regenerates every gold file from the double-precision references: npx tsx test/gold/make.ts
// Each file says what its numbers are, how they were made and how far a result may be from them.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { varlenAttentionGold } from './varlen-attention.js';

const files: Readonly<Record<string, string>> = {
  'varlen-attention.json': varlenAttentionGold(),
};
for (const [name, text] of Object.entries(files)) writeFileSync(join(__dirname, name), text);
