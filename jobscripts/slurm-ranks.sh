#!/bin/bash
# mpiflux under Slurm, several ranks a node, each with a share of its cores: for jobs so short that one rank a node
# cannot start them fast enough, or for a scheduler on each NUMA node. Submit: sbatch slurm-ranks.sh
#SBATCH --job-name=mpiflux
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --exclusive
#SBATCH --time=01:00:00
# EDIT above: nodes, ranks of a node, time, and your site's --account and --partition
set -eu

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

# --cpu-bind=none: the ranks of a node share out its cores among themselves
exec srun --mpi="${MPIFLUX_SRUN_MPI:-pmi2}" --cpu-bind=none -K0 \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" --hierarchy node,core $resume
