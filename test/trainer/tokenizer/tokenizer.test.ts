import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ByteTokenizer } from '../../../src/trainer/tokenizer/byte-tokenizer.js';
import { promptIds, responseIds, responseText } from '../../../src/trainer/tokenizer/tokenizer.js';
import { WordTokenizer } from '../../../src/trainer/tokenizer/word-tokenizer.js';
import { thrown } from '../../support/thrown.js';

const words = new WordTokenizer(['knight', 'K', '<answer>', '(', ')', '+', '1', '2']);

test('words: the longest match wins, spaces do not matter, digits stay together', () => {
  expect(words.vocabSize).toBe(11);
  expect([...words.encode(' knight K(12+1)\n')]).toEqual([3, 4, 6, 9, 10, 8, 9, 7]);
  expect(words.decode(words.encode('knight K(12+1)'))).toBe('knight K ( 12 + 1 )');
  expect(words.decode([0, 1, 2, 99, -1, 3])).toBe('<pad> <bos> <eos> <unknown> <unknown> knight');
});

test('words: a text outside the language is an error that shows where', () => {
  expect(thrown(() => words.encode('K knights'))).toMatchObject({
    code: 'ERR_VARLEN_DATA',
    message: expect.stringContaining('at character 1; got " knights"'),
  });
  expect(thrown(() => words.encode('<eos>'))).toMatchObject({ code: 'ERR_VARLEN_DATA' });
  expect(thrown(() => new WordTokenizer(['a', 'a']))).toMatchObject({ code: 'ERR_VARLEN_OPTION' });
  expect(thrown(() => new WordTokenizer(['a b']))).toMatchObject({ code: 'ERR_VARLEN_OPTION' });
});

test('bytes: any text comes back, and any ids become a text', () => {
  const bytes = new ByteTokenizer();
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      expect(bytes.decode(bytes.encode(text))).toBe(text);
    }),
  );
  expect(bytes.decode([1, 68, 2, 0, 300, 195 + 3])).toBe('\ufffdA\ufffd\ufffd\ufffd\ufffd');
});

test('prompts begin with bos, responses end with eos, which is no text', () => {
  expect([...promptIds(words, 'K')]).toEqual([1, 4]);
  expect([...responseIds(words, 'K')]).toEqual([4, 2]);
  expect(responseText(words, Int32Array.of(4, 2))).toBe('K');
  expect(responseText(words, Int32Array.of(4, 2, 4))).toBe('K <eos> K');
  expect(responseText(words, new Int32Array(0))).toBe('');
});
