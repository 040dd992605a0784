/* A disk that is slow to say that it has something: fsync and fdatasync take as many seconds more as stand in a file.
   Loaded into a collector under test by LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void be_slow(void)
{
    double seconds = 0;
    FILE *file = fopen(getenv("SLOW_DISK_FILE"), "r");
    if (file) {
        if (fscanf(file, "%lf", &seconds) != 1)
            seconds = 0;
        fclose(file);
    }
    struct timespec left = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    if (seconds > 0)
        nanosleep(&left, NULL);
}

int fsync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    be_slow();
    return real(fd);
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    be_slow();
    return real(fd);
}
