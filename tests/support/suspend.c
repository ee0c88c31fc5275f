/* A machine that sleeps: CLOCK_BOOTTIME is ahead by as many seconds as the file SUSPEND_FILE says, all other clocks are
 * as they are. That is all that a process notices of a suspend. Preloaded into a daemon and what it starts. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    char text[32] = "";
    if (syscall(SYS_clock_gettime, clock, now)) return -1;
    if (clock != CLOCK_BOOTTIME || !getenv("SUSPEND_FILE")) return 0;
    int file = open(getenv("SUSPEND_FILE"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) > 0) now->tv_sec += strtoll(text, NULL, 10);
    close(file);
    return 0;
}
