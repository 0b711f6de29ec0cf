'use strict';
// How many tests of a vitest run passed and failed, by the report that it writes into a file.
const fs = require('node:fs');

/** Arguments of vitest: what people read, and the report. */
const reporters = (report) => ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];

/** Reads the report of a run that ended with `status`, and deletes it. */
function readCounts(report, status) {
  if (!fs.existsSync(report)) return { passed: 0, failed: 1 };
  const { numPassedTests, numFailedTests } = JSON.parse(fs.readFileSync(report, 'utf8'));
  fs.rmSync(report);
  // A file that does not load, an unhandled rejection and what a sanitizer found fail no test.
  return { passed: numPassedTests, failed: status === 0 ? numFailedTests : Math.max(numFailedTests, 1) };
}

module.exports = { reporters, readCounts };
