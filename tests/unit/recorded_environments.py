"""What launchers put into the environment of one of their ranks.

Recorded where it says so, with names of machines and directories replaced; else written after the documentation
that is named. Only what a launcher adds is here, not the user's own variables.
"""

from __future__ import annotations


def _parse(text: str) -> dict[str, str]:
    return dict(line.strip().split("=", 1) for line in text.strip().splitlines())


# recorded: mpiexec -n 2 of MPICH 5.0.2, rank 1
HYDRA = _parse("""
    GFORTRAN_UNBUFFERED_PRECONNECTED=y
    HYDI_CONTROL_FD=7
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=1
    PMI_FD=11
    PMI_HOSTNAME=host
    PMI_RANK=1
    PMI_SIZE=2
""")

# recorded: mpiexec -n 2 of Intel MPI 2021.18, rank 1
INTEL = _parse("""
    GFORTRAN_UNBUFFERED_PRECONNECTED=y
    HYDRA_BSTRAP_LAUNCHER=ssh
    HYDRA_BSTRAP_LOCALHOST=host
    HYDRA_BSTRAP_UPSTREAM_FD=7
    HYDRA_LAUNCH_TYPE=2
    I_MPI_BIND_WIN_ALLOCATE=localalloc
    I_MPI_HYDRA_TOPOLIB=ipl2
    I_MPI_HYDRA_UUID=0f7e0000-3630-2219-e160-0600947c8853
    I_MPI_INFO_CORE=0,1
    I_MPI_INFO_NP=1
    I_MPI_INTERNAL_MEM_POLICY=default
    I_MPI_PIN_INFO=1
    I_MPI_PIN_MAPPING=2:0 0,1 1
    I_MPI_RETURN_WIN_MEM_NUMA=-1,0
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=1
    PMI_FD=11
    PMI_RANK=1
    PMI_SIZE=2
""")

# recorded: mpiexec -n 2 of Open MPI 5.0.11, rank 1
OPENMPI = _parse("""
    OMPI_ARGV=-c
    OMPI_COMMAND=sh
    OMPI_COMM_WORLD_LOCAL_RANK=1
    OMPI_COMM_WORLD_LOCAL_SIZE=2
    OMPI_COMM_WORLD_NODE_RANK=1
    OMPI_COMM_WORLD_RANK=1
    OMPI_COMM_WORLD_SIZE=2
    OMPI_FILE_LOCATION=/scratch/ompi.32369/1/1
    OMPI_MCA_PREFIXES=mca,opal,ompi
    OMPI_MCA_cpu_type=x86_64
    OMPI_MCA_initial_wdir=/home/me
    OMPI_MCA_num_procs=2
    OMPI_NUM_APP_CTX=1
    OMPI_TOOL_NAME=mpiexec
    OMPI_UNIVERSE_SIZE=2
    OMPI_VERSION=5.0.11
    OMPI_WORLD_LOCAL_SIZE=2
    OMPI_WORLD_SIZE=2
    OPAL_USER_PARAMS_GIVEN=1
    PMIX_HOSTNAME=host
    PMIX_NAMESPACE=prterun-host-32369@1
    PMIX_RANK=1
    PMIX_SERVER_URI41=prterun-host-32369@0.0;tcp4://127.0.0.1:41473
    PMIX_VERSION=5.0.11rc1
    PRTE_LAUNCHED=1
    PRTE_SHARED_FS=FALSE
""")

_SLURM_JOB = _parse("""
    SLURMD_NODENAME=n1
    SLURM_CLUSTER_NAME=sandbox
    SLURM_CPUS_ON_NODE=1
    SLURM_GTIDS=2
    SLURM_JOBID=1
    SLURM_JOB_CPUS_PER_NODE=2,1
    SLURM_JOB_ID=1
    SLURM_JOB_NODELIST=n[0-1]
    SLURM_JOB_NUM_NODES=2
    SLURM_LOCALID=0
    SLURM_NNODES=2
    SLURM_NODEID=1
    SLURM_NODELIST=n[0-1]
    SLURM_NPROCS=3
    SLURM_NTASKS=3
    SLURM_PRIO_PROCESS=0
    SLURM_PROCID=2
    SLURM_TASKS_PER_NODE=2,1
    SLURM_TASK_PID=32564
    SLURM_TOPOLOGY_ADDR=n1
""")

_SLURM_STEP = _parse("""
    SLURM_LAUNCH_NODE_IPADDR=127.0.0.1
    SLURM_SRUN_COMM_HOST=127.0.0.1
    SLURM_SRUN_COMM_PORT=40905
    SLURM_STEPID=0
    SLURM_STEP_ID=0
    SLURM_STEP_LAUNCHER_PORT=40905
    SLURM_STEP_NODELIST=n[0-1]
    SLURM_STEP_NUM_NODES=2
    SLURM_STEP_NUM_TASKS=3
    SLURM_STEP_TASKS_PER_NODE=2,1
    SLURM_UMASK=0022
""")

# recorded: srun -N2 -n3 --gpus-per-node=2 --mpi=... of Slurm 22.05, rank 2
SLURM_NONE = {**_SLURM_JOB, **_SLURM_STEP, "SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_GPUS": "0,1",
              "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_MPI_TYPE": "none"}
SLURM_PMI2 = {**SLURM_NONE, "SLURM_MPI_TYPE": "pmi2", "PMI_FD": "11", "PMI_JOBID": "1.0", "PMI_RANK": "2",
              "PMI_SIZE": "3"}
SLURM_PMIX = {**SLURM_NONE, "SLURM_MPI_TYPE": "pmix", "PMIX_NAMESPACE": "slurm.pmix.2.0", "PMIX_RANK": "2",
              "PMIX_HOSTNAME": "n1", "PMIX_VERSION": "4.2.2rc2", "SLURM_PMIXP_ABORT_AGENT_PORT": "36901",
              "SLURM_PMIX_MAPPING_SERV": "(vector,(0,1,2),(1,1,1))"}

# recorded: the script of sbatch -N2 -n2, and a rank of MPICH's mpiexec in it, which uses srun
SLURM_BATCH = {**_SLURM_JOB, "SLURMD_NODENAME": "n0", "SLURM_PROCID": "0", "SLURM_NODEID": "0",
               "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2"}
SLURM_HYDRA = {**_SLURM_JOB, **_SLURM_STEP, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2",
               "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_EXTERNAL_LAUNCHER": "1", "MPI_LOCALNRANKS": "4",
               "MPI_LOCALRANKID": "2", "PMI_FD": "5", "PMI_HOSTNAME": "n1", "PMI_RANK": "6", "PMI_SIZE": "8"}

# IBM Job Step Manager 10.2, "jsrun": environment variables of tasks; it gives Open MPI's too
JSM = _parse("""
    JSM_NAMESPACE=1
    JSM_NAMESPACE_RANK=5
    JSM_NAMESPACE_SIZE=12
    JSM_NAMESPACE_LOCAL_RANK=1
    JSM_NAMESPACE_LOCAL_SIZE=4
    OMPI_COMM_WORLD_RANK=5
    OMPI_COMM_WORLD_SIZE=12
    PMIX_NAMESPACE=1
    PMIX_RANK=5
""")

# IBM Spectrum LSF, "Environment variables set for job execution", and the Summit user guide: the batch script of a job
# of two nodes, on its launch node
LSF_BATCH = _parse("""
    LSB_JOBID=331211
    LSB_JOBNAME=mpiflux
    LSB_BATCH_JID=331211
    LSB_QUEUE=batch
    LSB_HOSTS=batch3 d09n01 d09n02
    LSB_MCPU_HOSTS=batch3 1 d09n01 42 d09n02 42
    LSB_DJOB_HOSTFILE=/home/me/.lsbatch/1581.331211.hostfile
    LSB_DJOB_NUMPROC=85
    LSB_MAX_NUM_PROCESSORS=85
    LS_JOBPID=77301
    LSFUSER=me
""")

# PBS Professional user's guide, "Environment variables": the batch script
PBS_BATCH = _parse("""
    PBS_ENVIRONMENT=PBS_BATCH
    PBS_JOBID=1234.polaris-pbs-01
    PBS_NODEFILE=/var/spool/pbs/aux/1234.polaris-pbs-01
    PBS_O_WORKDIR=/home/me/work
    PBS_QUEUE=prod
    NCPUS=64
""")

# HPE Parallel Application Launch Service, mpiexec(1)
PALS = _parse("""
    PALS_APID=3b9c
    PALS_RANKID=3
    PALS_NODEID=1
    PALS_LOCAL_RANKID=1
    PALS_SPOOL_DIR=/var/run/palsd/3b9c
    PMI_RANK=3
    PMI_SIZE=4
    PMI_LOCAL_RANK=1
    PMI_LOCAL_SIZE=2
""")

# flux-environment(7), job environment
FLUX = _parse("""
    FLUX_JOB_ID=f2X3
    FLUX_JOB_SIZE=6
    FLUX_JOB_NNODES=2
    FLUX_TASK_RANK=4
    FLUX_TASK_LOCAL_ID=1
    FLUX_URI=local:///run/flux/local
    PMI_FD=18
    PMI_RANK=4
    PMI_SIZE=6
""")

ALL = {"hydra": HYDRA, "intel": INTEL, "openmpi": OPENMPI, "slurm-none": SLURM_NONE, "slurm-pmi2": SLURM_PMI2,
       "slurm-pmix": SLURM_PMIX, "slurm-batch": SLURM_BATCH, "slurm-hydra": SLURM_HYDRA, "jsm": JSM, "pals": PALS,
       "flux": FLUX}
