/* The inner loop of a supervisor for jobs that end within milliseconds: start, wait, take the output, write the record,
   start the next. Optional: mpiflux/node/burst.py uses it where it was built, and does without where it was not.

   Plain C that Python calls by ctypes: no Python header is needed to build it. Nothing here decides anything: whatever
   is not the plain course of a short job is handed back with all that runs (see the reasons below). `struct quick` and
   `struct slot` are mirrored in mpiflux/node/quick.py, which compares their sizes when it loads this file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum reason {
    MORE = 1, /* a slot is free and no job is queued; or all are started and `eager` is set; or the output is large */
    EVENTS,   /* a descriptor of the supervisor's epoll wants attention */
    TIMER,    /* `due` has come, or a job is no longer young */
    CANNOT,   /* the job at the head of the queue could not be started in `slot`: `error` */
    UNUSUAL,  /* the process in `slot` ended by a signal or has left somebody behind: `status` and usage */
    UNKNOWN,  /* a child of others, `pid`, ended: `status` and usage */
    SIGNAL,   /* `signal` came from outside */
    FAILED    /* the process cannot go on in this way: out of memory */
};

enum { COMPLETED = 1, JOB_FAILED = 2, STDOUT_TRUNCATED = 1, STDERR_TRUNCATED = 2 };
/* goes up with every change of this file, here and in quick.py */
enum { VERSION = 1 };
enum { READ = 1 << 16, MUCH = 1 << 20, STACK = 1 << 16 };

/* a lease, and the job that runs on it */
struct slot {
    char **envp;
    char *digits[3]; /* where the numbers of the job are written: id, index, attempt */
    const cpu_set_t *cpus;
    int32_t out, out_child, err, err_child;
    uint32_t r_id;
    int32_t pid; /* 0: free */
    int64_t index;
    double t_start;
    int32_t attempt;
};

struct quick {
    /* what stays */
    int32_t epoll, signals, children, null;
    double offset, young, flush;
    const cpu_set_t *allowed;
    uint64_t cpus_size;
    /* the group, and where it runs */
    struct slot *slots;
    int32_t n_slots, n_own, own_at, attempt;
    const char *cwd;
    uint64_t first_id, limit;
    uint32_t owner;
    int32_t default_policy, unbind, known; /* known: children that others here have started */
    /* the queue; argvs, paths and owns have an entry a job, or `constant` is set: one for all */
    int64_t index, step;
    char ***argvs;
    char **paths;
    char ***owns;
    int32_t at, count, constant, eager;
    /* time */
    double due, oldest, now;
    /* what came of it */
    unsigned char *records;
    unsigned char *output;
    uint64_t records_size, records_room, output_size, output_room;
    double seconds;
    int64_t started, ended;
    int32_t bound; /* the slot that we are bound like; -1: to all CPUs, -2: anything else */
    int32_t slot, status, error, pid, signal;
    double utime, stime;
    uint64_t maxrss;
};

/* as mpiflux/model/records.py */
struct __attribute__((packed)) record {
    uint64_t id;
    uint16_t attempt;
    uint8_t result, flags;
    int16_t returncode;
    uint16_t tasks;
    uint32_t r_sched, r_id;
    double t_alloc, t_start, t_finish;
    float utime, stime;
    uint32_t maxrss, out_len, err_len, pid;
};

struct start {
    const struct quick *q;
    const struct slot *slot;
    const char *path;
    char **argv;
    volatile int error;
};

static char stack[STACK] __attribute__((aligned(64)));
static unsigned char buffer[READ];
static int ignored[NSIG], n_ignored;

/* What the Python side must agree with; 0 where records would come out wrong. */
uint64_t mpiflux_quick_sizes(void)
{
    uint16_t one = 1;
    return *(unsigned char *)&one ? (uint64_t)VERSION << 32 | sizeof(struct quick) << 16 | sizeof(struct slot) : 0;
}

static double now(const struct quick *q)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec + q->offset;
}

/* Called once, before the first run: an ignored signal stays ignored across execve, all others need no call. */
void mpiflux_quick_begin(void)
{
    struct sigaction action;
    n_ignored = 0;
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            ignored[n_ignored++] = number;
}

/* In the memory of the supervisor, which waits meanwhile: only system calls, nothing written but `error`. */
static int child(void *argument)
{
    struct start *start = argument;
    const struct quick *q = start->q;
    struct sigaction action;
    struct sched_param param = {0};
    sigset_t none;
    int fds[3] = {q->null, start->slot->out_child, start->slot->err_child};

    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_DFL;
    for (int i = 0; i < n_ignored; i++)
        sigaction(ignored[i], &action, NULL);
    if (q->default_policy)
        sched_setscheduler(0, SCHED_OTHER, &param);
    setpgid(0, 0);
    /* ours are all above 2, so none of them is overwritten before it is copied */
    for (int i = 0; i < 3; i++)
        if (dup2(fds[i], i) < 0)
            goto failed;
    if (q->cwd && chdir(q->cwd) < 0)
        goto failed;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(start->path, start->argv, start->slot->envp);
failed:
    start->error = errno ? errno : EINVAL;
    _exit(127);
}

static char *decimal(char *to, uint64_t value)
{
    char digits[24];
    int n = 0;
    do
        digits[n++] = '0' + value % 10;
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    *to = 0;
    return to;
}

/* 0, or an errno */
static int bind_to(struct quick *q, int like)
{
    const cpu_set_t *cpus = like < 0 ? q->allowed : q->slots[like].cpus;
    if (q->bound == like)
        return 0;
    if (sched_setaffinity(0, q->cpus_size, cpus) < 0)
        return errno;
    q->bound = like;
    return 0;
}

static int start(struct quick *q, int number)
{
    struct slot *slot = &q->slots[number];
    int at = q->constant ? 0 : q->at;
    struct start start = {q, slot, q->paths[at], q->argvs[at], 0};
    sigset_t all, before;
    int error, pid;

    decimal(slot->digits[0], q->first_id + q->index);
    decimal(slot->digits[1], q->index);
    decimal(slot->digits[2], q->attempt);
    for (int i = 0; i < q->n_own; i++)
        slot->envp[q->own_at + i] = q->owns[at][i];
    slot->t_start = now(q);
    if ((error = bind_to(q, number)) == 0) {
        /* a handler must not run in the child: it would be on our data */
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, &before);
        pid = clone(child, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, &start);
        error = pid < 0 ? errno : start.error;
        sigprocmask(SIG_SETMASK, &before, NULL);
        if (pid > 0 && error)
            waitpid(pid, NULL, 0);
    }
    if (error) {
        q->slot = number;
        q->error = error;
        return CANNOT;
    }
    if (q->unbind)
        bind_to(q, -1);
    slot->pid = pid;
    slot->index = q->index;
    slot->attempt = q->attempt;
    q->index += q->step;
    q->at++;
    q->started++;
    return 0;
}

/* Whether all our children are known ones: then nobody is left of the job that has just been waited for. */
static int nobody_left(const struct quick *q, int running)
{
    char text[4096];
    int blanks = 0;
    ssize_t n = pread(q->children, text, sizeof text, 0);
    if (n < 0 || n == (ssize_t)sizeof text)
        return 0;
    for (ssize_t i = 0; i < n; i++)
        blanks += text[i] == ' ';
    return blanks == running + q->known;
}

static int room(unsigned char **data, uint64_t *have, uint64_t want)
{
    unsigned char *grown;
    if (want <= *have)
        return 1;
    want = want * 2 < 1 << 14 ? 1 << 14 : want * 2;
    if ((grown = realloc(*data, want)) == NULL)
        return 0;
    *data = grown;
    *have = want;
    return 1;
}

/* Take all that is in a pipe, to which only we could still write; the bytes that were kept, -1 without memory. */
static int64_t collect(struct quick *q, int fd, int child_fd, uint8_t *flags, int truncated)
{
    uint64_t kept = 0;
    ssize_t n;
    while ((n = read(fd, buffer, READ)) > 0) {
        uint64_t take = (uint64_t)n;
        if (take > q->limit - kept) {
            *flags |= truncated;
            take = q->limit - kept;
        }
        if (!room(&q->output, &q->output_room, q->output_size + take))
            return -1;
        memcpy(q->output + q->output_size, buffer, take);
        q->output_size += take;
        kept += take;
        if (n < READ)
            break;
    }
    /* the job may have set O_NONBLOCK, which would hit the next one */
    fcntl(child_fd, F_SETFL, 0);
    return kept;
}

static int finish(struct quick *q, struct slot *slot, int pid, int status, const struct rusage *usage)
{
    struct record record;
    uint8_t flags = 0;
    int64_t out, err;

    if (!room(&q->records, &q->records_room, q->records_size + sizeof record))
        return 0;
    out = collect(q, slot->out, slot->out_child, &flags, STDOUT_TRUNCATED);
    err = collect(q, slot->err, slot->err_child, &flags, STDERR_TRUNCATED);
    if (out < 0 || err < 0)
        return 0;
    record = (struct record){
        .id = q->first_id + slot->index, .attempt = slot->attempt, .result = status ? JOB_FAILED : COMPLETED,
        .flags = flags, .returncode = WEXITSTATUS(status), .tasks = 1, .r_sched = q->owner, .r_id = slot->r_id,
        .t_alloc = slot->t_start, .t_start = slot->t_start, .t_finish = q->now,
        .utime = usage->ru_utime.tv_sec + 1e-6 * usage->ru_utime.tv_usec,
        .stime = usage->ru_stime.tv_sec + 1e-6 * usage->ru_stime.tv_usec,
        .maxrss = usage->ru_maxrss, .out_len = out, .err_len = err, .pid = pid};
    memcpy(q->records + q->records_size, &record, sizeof record);
    q->records_size += sizeof record;
    q->seconds += q->now - slot->t_start;
    q->ended++;
    if (q->oldest == 0) {
        q->oldest = q->now;
        if (q->due > q->now + q->flush)
            q->due = q->now + q->flush;
    }
    return 1;
}

static int reap(struct quick *q, int *running)
{
    struct rusage usage;
    int status, pid, i;

    while (*running + q->known > 0) {
        if ((pid = wait4(-1, &status, WNOHANG, &usage)) <= 0)
            return 0;
        for (i = 0; i < q->n_slots && q->slots[i].pid != pid; i++)
            ;
        if (i < q->n_slots) {
            --*running;
            /* codes over 128 may be a shell's word for a signal */
            if (WIFEXITED(status) && WEXITSTATUS(status) <= 128 && nobody_left(q, *running)) {
                if (!finish(q, &q->slots[i], pid, status, &usage))
                    return FAILED;
                q->slots[i].pid = 0;
                continue;
            }
        }
        q->slot = i;
        q->pid = pid;
        q->status = status;
        q->utime = usage.ru_utime.tv_sec + 1e-6 * usage.ru_utime.tv_usec;
        q->stime = usage.ru_stime.tv_sec + 1e-6 * usage.ru_stime.tv_usec;
        q->maxrss = usage.ru_maxrss;
        return i < q->n_slots ? UNUSUAL : UNKNOWN;
    }
    return 0;
}

/* 0 after SIGCHLD alone; of several others the last one, as mpiflux.node.outside does */
static int signals(struct quick *q)
{
    struct signalfd_siginfo info[16];
    ssize_t n = read(q->signals, info, sizeof info);
    int reason = 0;
    for (ssize_t i = 0; n > 0 && i < n / (ssize_t)sizeof info[0]; i++)
        if (info[i].ssi_signo != SIGCHLD) {
            q->signal = info[i].ssi_signo;
            reason = SIGNAL;
        }
    return reason;
}

/* Run queued jobs on the slots until there is a reason to return; what still runs then stays in its slot. */
int mpiflux_quick_run(struct quick *q)
{
    struct epoll_event events[4];
    int running = 0, reason, i, n, space;
    double wake;

    for (i = 0; i < q->n_slots; i++)
        running += q->slots[i].pid != 0;
    for (;;) {
        for (i = 0, space = 0, wake = q->due; i < q->n_slots; i++) {
            struct slot *slot = &q->slots[i];
            if (!slot->pid) {
                if (q->at == q->count) {
                    space = 1;
                    continue;
                }
                if ((reason = start(q, i)) != 0)
                    return reason;
                running++;
            }
            if (slot->pid && slot->t_start + q->young < wake)
                wake = slot->t_start + q->young;
        }
        if (space || q->output_size > MUCH || (q->eager && q->at == q->count))
            return MORE;
        q->now = now(q);
        if (q->now >= wake)
            return TIMER;
        n = epoll_wait(q->epoll, events, 4, (int)((wake - q->now) * 1e3) + 1);
        if (n == 0 || (n < 0 && errno == EINTR))
            continue;
        if (n != 1 || events[0].data.fd != q->signals)
            return EVENTS;
        q->now = now(q);
        if ((reason = signals(q)) != 0 || (reason = reap(q, &running)) != 0)
            return reason;
    }
}
