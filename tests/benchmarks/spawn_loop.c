/* The limit that a node is measured against: start COUNT processes, WIDTH at a time, wait for each, keep nothing.
   Prints microseconds of CPU a process: this program's own, then its children's. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>

extern char **environ;

static double seconds(int who)
{
    struct rusage r;
    getrusage(who, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + 1e-6 * (r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: spawn_loop COUNT WIDTH PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    int count = atoi(argv[1]), width = atoi(argv[2]), live = 0, started = 0, status;
    pid_t pid;
    while (started < count || live) {
        while (live < width && started < count) {
            if (posix_spawn(&pid, argv[3], NULL, NULL, argv + 3, environ) != 0) {
                perror(argv[3]);
                return 1;
            }
            live++, started++;
        }
        if (waitpid(-1, &status, 0) < 0)
            return 1;
        live--;
    }
    printf("%.1f %.1f\n", 1e6 * seconds(RUSAGE_SELF) / count, 1e6 * seconds(RUSAGE_CHILDREN) / count);
    return 0;
}
