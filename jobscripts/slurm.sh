#!/bin/bash
# mpiflux under Slurm, one rank a node. Submit: sbatch slurm.sh
#SBATCH --job-name=mpiflux
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
# EDIT above: nodes, time, and your site's --account and --partition
set -eu

workflow=${1:-workflow.yaml}          # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load openmpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

# --cpu-bind=none: jobs get all cores of the node, mpiflux binds each to its own
# -K0: one lost rank must not end the step
# --mpi: pmi2 for MPICH, pmix for Open MPI 4
exec srun --mpi="${MPIFLUX_SRUN_MPI:-pmi2}" --cpu-bind=none -K0 \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
