#!/bin/bash
# mpiflux under PBS with PALS as on HPE Cray machines, one rank a node. Submit: qsub pbs.sh
#PBS -N mpiflux
#PBS -l select=2:ncpus=64:ngpus=4
#PBS -l walltime=01:00:00
#PBS -j oe
# EDIT above: nodes with their cores and GPUs, time, and your site's -A and -q
set -eu
cd "${PBS_O_WORKDIR:-.}"

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

export MPIFLUX_END_TIME=$(($(date +%s) + 60 * 60))  # EDIT: seconds, as walltime above: PBS does not say when it ends
nodes=$(sort -u "$PBS_NODEFILE" | wc -l)
# --cpu-bind none: jobs get all cores of the node, mpiflux binds each to its own
exec mpiexec -n "$nodes" --ppn 1 --cpu-bind none \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
