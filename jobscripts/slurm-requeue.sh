#!/bin/bash
# A run longer than one allocation: near its end the run stops, and Slurm queues it again to go on.
# Submit: sbatch slurm-requeue.sh
#SBATCH --job-name=mpiflux
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# EDIT above: nodes, time, how long before its end jobs are ended (120 seconds), your site's --account and --partition
set -u

workflow=${1:-workflow.yaml}           # EDIT: your workflow
run_dir=${2:-$PWD/run-$(basename "${workflow%.*}")}  # EDIT: on a file system that all nodes see

# EDIT: the module and environment with mpiflux and the MPI that mpi4py was built for
# module load mpi; . "$HOME/mpiflux/bin/activate"

resume=
[ -e "$run_dir/run.db" ] && resume=--resume

srun --mpi="${MPIFLUX_SRUN_MPI:-pmi2}" --cpu-bind=none -K0 \
    python -m mpiflux run "$workflow" --run-dir "$run_dir" $resume &
step=$!
# USR1 comes to this shell only, and is noticed because it sits in wait; the run ends on TERM, and can be resumed.
# Not through srun, which would end the ranks at once
warned=
trap 'warned=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
wait "$step"; status=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
# nor is it over when what is left could not end in this allocation; unless that was so from the beginning
[ $SECONDS -gt 60 ] && tail -n 3 "$run_dir/log" | grep -q 'nothing is left that could finish' && warned=1
[ -n "$warned" ] && [ "$status" -ne 0 ] && exec scontrol requeue "$SLURM_JOB_ID"
exit "$status"
