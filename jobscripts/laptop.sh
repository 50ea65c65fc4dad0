#!/bin/sh
# mpiflux on one machine, no batch system: one process that schedules on all cores.
set -eu
workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-run-$(basename "${workflow%.*}")}

resume=
[ -e "$run_dir/run.db" ] && resume=--resume
exec python3 -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
