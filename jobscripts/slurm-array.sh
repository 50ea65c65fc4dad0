#!/bin/bash
# An array of independent instances, one workflow each: an ensemble that may start piece by piece.
# Submit: sbatch slurm-array.sh WORKFLOW.yaml
#SBATCH --job-name=mpiflux-array
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
# EDIT above: how many instances, nodes and time of each, and your site's --account and --partition
set -eu

workflow=${1:-workflow.yaml}           # EDIT: your workflow; it has a variable "part", 0 to 3 here
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}-$SLURM_ARRAY_TASK_ID

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume
exec srun --mpi="${MPIFLUX_SRUN_MPI:-pmi2}" --cpu-bind=none -K0 \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" --set "part=$SLURM_ARRAY_TASK_ID" $resume
