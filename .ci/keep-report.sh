#!/bin/sh
# keep-report.sh NVCC ... -o OBJECT ...: runs the compiler and leaves what its assembler says of each
# kernel (registers, spills) in OBJECT.ptxas, for check-registers.cjs. Everything else is passed on.
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
started=$(date +%s)
"$@" 2> "$object.ptxas"
status=$?
grep -vE '^(ptxas|nvlink) info|^ +[0-9]+ bytes ' "$object.ptxas" >&2
echo "compiled in $(($(date +%s) - started)) s" >> "$object.ptxas"
exit $status
