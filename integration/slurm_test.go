package integration

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slurmConf is Slurm's configuration; %[1]s is the directory of its files. The address is one that
// is not a loopback's: getaddrinfo(3) with AI_ADDRCONFIG takes a host without such for one without
// a network.
const slurmConf = `ClusterName=test
SlurmctldHost=ctl(192.0.2.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=%[1]s/munge/socket
CredType=cred/munge
StateSaveLocation=%[1]s/ctl
SlurmdSpoolDir=%[1]s/%%n
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/%%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
KillWait=20
SchedulerParameters=sched_interval=1,batch_sched_delay=0
`

// slurm is a cluster in network, mount, process and UTS namespaces of its own.
type slurm struct {
	t         *testing.T
	dir       string
	namespace string
	env       []string
	nodes     map[string]*exec.Cmd
}

// TestSlurm submits jobs that are VMs to a Slurm of two nodes, each with a daemon of its own, and
// of a third with real VMs where there are some. Jobs fail, are cancelled and lose their node. Each
// has the right status, and no VM is left.
func TestSlurm(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("run as root")
	}
	for _, program := range []string{"slurmctld", "slurmd", "sbatch", "munged"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("apt install slurmctld slurmd slurm-client munge")
		}
	}
	t.Parallel()
	daemons := map[string]*daemon{}
	for _, name := range []string{"node1", "node2"} {
		daemons[name] = testDaemon(t, "fake")
	}
	if ok, _ := realVMs(); ok {
		daemons["node3"] = testDaemon(t, "qemu")
	}
	s := newSlurm(t, daemons)

	want := map[string]string{} // of each job
	for _, j := range slurmJobs(daemons["node3"] != nil) {
		want[s.submit(j.where, j.command...)] = j.end
	}
	sleepers := func(node, end string) (ids []string) {
		for range 4 {
			id := s.submit(node, "sleep", "1000")
			ids, want[id] = append(ids, id), end
		}
		for _, id := range ids {
			health := daemons[node].path("slurm-"+id, "health")
			s.await(2*time.Minute, "the VM of job "+id+" is healthy", func() bool {
				text, err := read(health)
				return err == nil && strings.HasPrefix(text, "healthy")
			})
		}
		return ids
	}
	cancelled := sleepers("node1", "CANCELLED 143:0") // what SIGTERM to banger leads to
	sleepers("node2", "NODE_FAIL 0:0")

	// The node that is lost must not have others' jobs any more.
	s.await(2*time.Minute, "all jobs but the sleepers have ended", func() bool {
		return len(strings.Fields(s.command("squeue", "-h", "-o", "%A"))) == 8
	})
	s.command("scancel", cancelled...)
	// The death of its process 1 ends all processes of the node.
	must(t, syscall.Kill(-s.nodes["node2"].Process.Pid, syscall.SIGKILL))
	s.command("scontrol", "update", "nodename=node2", "state=down", "reason=lost")

	s.await(3*time.Minute, "all jobs have ended", func() bool {
		return s.command("squeue", "-h") == ""
	})
	got := s.ends()
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if got[id] != want[id] {
			out, _ := os.ReadFile(filepath.Join(s.dir, "slurm-"+id+".out"))
			t.Errorf("job %s ended with %q, not %q; it printed\n%s", id, got[id], want[id], out)
		}
	}
	for name, d := range daemons {
		s.await(time.Minute, "no VM is left on "+name, func() bool {
			left, err := os.ReadDir(d.path())
			return err == nil && len(left) == 0
		})
	}
}

// slurmJob is a job that ends by itself.
type slurmJob struct {
	where   string // a node, or both
	command []string
	end     string // the job's state and its exit status and signal, as Slurm has them
}

// slurmJobs returns 12 jobs in fake VMs, and 2 in real ones where there are some.
func slurmJobs(real bool) []slurmJob {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	var jobs []slurmJob
	for i := range 10 {
		status := i % 5 * 7 // 0, 7, 14, 21 and 28
		end := fmt.Sprintf("FAILED %d:0", status)
		if status == 0 {
			end = "COMPLETED 0:0"
		}
		jobs = append(jobs, slurmJob{"both", sh(fmt.Sprintf("sleep 1; exit %d", status)), end})
	}
	jobs = append(jobs,
		slurmJob{"node1", []string{"nonesuch"}, "FAILED 127:0"},
		slurmJob{"node2", sh("kill -KILL $$"), "FAILED 137:0"}) // 128 and the signal
	if real {
		jobs = append(jobs,
			slurmJob{"node3", sh("[ $(uname -s) = Linux ] && exit 42"), "FAILED 42:0"},
			slurmJob{"node3", []string{"true"}, "COMPLETED 0:0"})
	}
	return jobs
}

// newSlurm starts a cluster with these nodes. On each, /run/banger is the mount of its daemon. The
// end of the test kills it.
func newSlurm(t *testing.T, nodes map[string]*daemon) *slurm {
	t.Helper()
	dir := t.TempDir()
	s := &slurm{t: t, dir: dir, namespace: fmt.Sprintf("banger-slurm-%d", os.Getpid()),
		nodes: map[string]*exec.Cmd{}}
	conf := filepath.Join(dir, "slurm.conf")
	s.env = append(os.Environ(), "SLURM_CONF="+conf, "BANGER_MOUNT=/run/banger",
		"PATH="+bin+":"+os.Getenv("PATH"))
	text, port := fmt.Sprintf(slurmConf, dir), 16820
	for name := range nodes {
		text += fmt.Sprintf("NodeName=%s NodeAddr=192.0.2.1 Port=%d CPUs=16 RealMemory=8000\n",
			name, port)
		text += fmt.Sprintf("PartitionName=%[1]s Nodes=%[1]s State=UP MaxTime=10\n", name)
		port++
	}
	text += "PartitionName=both Nodes=node1,node2 LLN=YES State=UP MaxTime=10\n"
	must(t, os.WriteFile(conf, []byte(text), 0o644))
	must(t, os.Mkdir(filepath.Join(dir, "munge"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "ctl"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "key"), bytes.Repeat([]byte{7}, 128), 0o400))

	s.run("ip", "netns", "add", s.namespace)
	t.Cleanup(func() { s.run("ip", "netns", "delete", s.namespace) })
	s.run("ip", "-n", s.namespace, "link", "set", "lo", "up")
	s.run("ip", "-n", s.namespace, "addr", "add", "192.0.2.1/32", "dev", "lo")

	file := func(name string) string { return filepath.Join(dir, name) }
	s.start("munged", "munged", "--foreground", "--force", "--socket="+file("munge/socket"),
		"--key-file="+file("key"), "--log-file="+file("munged.log"),
		"--pid-file="+file("munged.pid"), "--seed-file="+file("seed"))
	s.await(time.Minute, "munged listens", func() bool {
		_, err := os.Stat(file("munge/socket"))
		return err == nil
	})
	s.start("ctl", "unshare", "-u", "sh", "-c", "hostname ctl; exec slurmctld -D")
	for name, d := range nodes {
		// A tmpfs leaves the host's /run alone. The shell is process 1: its end ends the node.
		script := fmt.Sprintf("hostname %s; mount -t tmpfs none /run; mkdir /run/banger; "+
			"mount --bind %s /run/banger; slurmd -D -N %[1]s & wait", name, d.mount)
		s.nodes[name] = s.start(name, "unshare", "-u", "-m", "-p", "-f", "--kill-child",
			"--mount-proc", "sh", "-c", script)
	}
	for name := range nodes {
		s.await(time.Minute, name+" is idle", func() bool {
			out, err := s.cmd("sinfo", "-h", "-N", "-o", "%N %T").Output()
			return err == nil && strings.Contains(string(out), name+" idle\n")
		})
	}
	return s
}

// start starts a program of the cluster in a process group of its own.
func (s *slurm) start(name, program string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	must(s.t, err)
	defer log.Close()
	c := s.cmd(program, args...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(s.t, c.Start())
	s.t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // unless the test has
		_ = c.Wait()                                      // killed
		if s.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.t.Logf("%s: %s", name, text[max(0, len(text)-4<<10):])
		}
	})
	return c
}

// cmd is a command in the cluster's network.
func (s *slurm) cmd(program string, args ...string) *exec.Cmd {
	words := append([]string{"--net=/run/netns/" + s.namespace, program}, args...)
	c := exec.Command("nsenter", words...)
	c.Env, c.Dir = s.env, s.dir
	return c
}

func (s *slurm) command(program string, args ...string) string {
	s.t.Helper()
	out, err := s.cmd(program, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

func (s *slurm) run(program string, args ...string) {
	s.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		s.t.Errorf("%s %v: %v\n%s", program, args, err, out)
	}
}

// submit submits the example's job to a partition, a node's or both nodes', and returns its number.
func (s *slurm) submit(where string, command ...string) string {
	s.t.Helper()
	options := "--set vmm=fake"
	if where == "node3" {
		options = ""
	}
	job := filepath.Join(module, "examples", "cluster", "slurm.sbatch")
	out := s.command("sbatch", append([]string{"--parsable", "--partition=" + where, "--mem=192M",
		"--export=ALL,VM_OPTIONS=" + options, job}, command...)...)
	return strings.TrimSpace(out)
}

var slurmEnd = regexp.MustCompile(`(?m)^JobId=(\d+).* JobState=(\S+).* ExitCode=(\S+)`)

// ends returns the state and the exit status of each job.
func (s *slurm) ends() map[string]string {
	s.t.Helper()
	ends := map[string]string{}
	out := s.command("scontrol", "-o", "show", "job")
	for _, m := range slurmEnd.FindAllStringSubmatch(out, -1) {
		ends[m[1]] = m[2] + " " + m[3]
	}
	return ends
}

func (s *slurm) await(limit time.Duration, what string, is func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not so after %v: %s", limit, what)
		}
	}
}
