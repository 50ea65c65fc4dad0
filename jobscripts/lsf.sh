#!/bin/bash
# mpiflux under LSF and jsrun as on Summit: one resource set a node, with all its cores and GPUs. Submit: bsub lsf.sh
#BSUB -J mpiflux
#BSUB -P ABC123
#BSUB -W 1:00
#BSUB -nnodes 2
#BSUB -o mpiflux.%J
# EDIT above: your project, the time, the nodes
set -eu

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

cores=42 gpus=6                        # EDIT: of one node (Summit: 42 and 6; Lassen: 40 and 4)
nodes=$(sed 1d "$LSB_DJOB_HOSTFILE" | sort -u | wc -l)  # the first host is where this script runs
export MPIFLUX_END_TIME=$(($(date +%s) + 60 * 60))      # EDIT: seconds, as -W above: LSF does not tell the job
# -b rs: the rank may use all cores of its set, and binds each job; the default leaves it one core
exec jsrun -n "$nodes" -r 1 -a 1 -c "$cores" -g "$gpus" -d packed -b rs \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
