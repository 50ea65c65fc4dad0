#!/bin/bash
# mpiflux as a job of Flux, one rank a node. Submit: flux batch flux.sh
#flux: --job-name=mpiflux
#flux: --nodes=2
#flux: --exclusive
#flux: --time-limit=1h
# EDIT above: nodes, time, and your site's --queue and --bank
set -eu

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

# when Flux ends this instance; without a time limit it says inf
left=$(flux job timeleft 2>/dev/null || true)
case $left in '' | *[!0-9]*) ;; *) export MPIFLUX_END_TIME=$(($(date +%s) + left)) ;; esac

# cpu-affinity=off: jobs get all cores of the node, mpiflux binds each to its own
exec flux run -N "$(flux getattr size)" --tasks-per-node=1 --exclusive \
    -o cpu-affinity=off -o gpu-affinity=off \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
