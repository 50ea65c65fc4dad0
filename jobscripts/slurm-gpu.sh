#!/bin/bash
# mpiflux under Slurm on nodes with GPUs, one rank a node. Submit: sbatch slurm-gpu.sh
#SBATCH --job-name=mpiflux
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --exclusive
#SBATCH --time=01:00:00
# EDIT above: nodes, GPUs of a node, time, and your site's --account and --partition
set -eu

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

# the rank of a node sees all its GPUs, and gives each job those it asks for: resources: {gpus: 1}
exec srun --mpi="${MPIFLUX_SRUN_MPI:-pmi2}" --cpu-bind=none --gpu-bind=none -K0 \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume
