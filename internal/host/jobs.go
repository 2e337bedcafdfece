package host

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// jobsFile keeps two daemons of one host from using the same uid: byte N of it is locked while uid
// N is in use. The kernel drops the locks of a daemon that dies.
const jobsFile = "/run/banger.uids"

// JobUIDs is how many uids below the first uid of VMs belong to jobs.
const JobUIDs = 1024

// jobEnd bounds the wait for the processes of a job that has ended.
const jobEnd = 10 * time.Second

// Jobs are uids for work on files of strangers: an import's qemu-img, a build, the conversion of a
// disk. No two jobs of a host have the same uid at a time.
type Jobs struct {
	first int // 0: jobs run as the daemon itself

	mu    sync.Mutex // guards the rest
	locks *os.File   // jobsFile, once it is needed
	busy  [JobUIDs]bool
	next  int
}

// NewJobs returns the jobs of a daemon whose VMs have the uids from vmUIDBase on. With 0, and
// without root, jobs run as the daemon itself.
func NewJobs(vmUIDBase int) *Jobs {
	if vmUIDBase == 0 || os.Getuid() != 0 {
		return &Jobs{}
	}
	return &Jobs{first: vmUIDBase - JobUIDs}
}

// Job is a uid in use. UID is also its gid, and -1 where jobs run as the daemon.
type Job struct {
	UID   int
	jobs  *Jobs
	index int
}

// Begin returns a job with a uid that no other job has. The caller ends the job. EBUSY if all uids
// are in use.
func (j *Jobs) Begin() (*Job, error) {
	if j.first == 0 {
		return &Job{UID: -1}, nil
	}
	index, err := j.reserve()
	if err != nil {
		return nil, err
	}
	job := &Job{UID: j.first + index, jobs: j, index: index}
	if err := job.Kill(); err != nil { // processes of a daemon that was killed
		return nil, err // the uid stays reserved
	}
	return job, nil
}

func (j *Jobs) reserve() (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.locks == nil {
		f, err := os.OpenFile(jobsFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return 0, fmt.Errorf("cannot find out which uids are in use: %w", err)
		}
		j.locks = f
	}
	for range JobUIDs {
		index := j.next
		j.next = (j.next + 1) % JobUIDs
		if !j.busy[index] && j.lock(index, unix.F_WRLCK) == nil { // else another daemon has it
			j.busy[index] = true
			return index, nil
		}
	}
	return 0, fmt.Errorf("all %d uids of jobs are in use: %w", JobUIDs, unix.EBUSY)
}

// lock sets (F_WRLCK) or removes (F_UNLCK) the host's lock of a uid. It does not wait.
func (j *Jobs) lock(index int, kind int16) error {
	l := unix.Flock_t{Type: kind, Start: int64(j.first + index), Len: 1}
	return unix.FcntlFlock(j.locks.Fd(), unix.F_OFD_SETLK, &l)
}

// Kill ends all processes of the job. From then on nobody changes the files that it made.
func (j *Job) Kill() error {
	if j.jobs == nil {
		return nil
	}
	return EndProcesses(j.UID, jobEnd)
}

// End ends the job's processes and returns its uid. The caller has removed the job's files, or
// changed their owner. A uid whose processes do not end stays reserved.
func (j *Job) End() error {
	if j.jobs == nil {
		return nil
	}
	if err := j.Kill(); err != nil {
		return fmt.Errorf("a job goes on: %w", err)
	}
	j.jobs.mu.Lock()
	defer j.jobs.mu.Unlock()
	j.jobs.busy[j.index] = false
	return j.jobs.lock(j.index, unix.F_UNLCK)
}
