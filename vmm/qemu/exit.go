package qemu

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"banger/vmm"
	"banger/vmm/guest"

	"golang.org/x/sys/unix"
)

// bury reaps the process, publishes its exit and delivers the last notices.
func (m *Machine) bury() {
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	for _, drained := range []<-chan struct{}{m.qmp.done, m.serial.done} {
		select {
		case <-drained:
		case <-timer.C:
		}
	}
	m.exit = m.exitOf(m.proc.reap())
	if m.group != nil {
		m.group.Remove()
	}
	removeSockets(m.dir)
	close(m.done)
	for len(m.notices) > 0 { // nobody else receives
		m.notify(<-m.notices)
	}
	m.notify(vmm.Notice{Kind: vmm.NoticeExited, Detail: m.exit.Reason})
}

// exitOf returns how the machine ended. status is the process's if that was our child.
func (m *Machine) exitOf(status unix.WaitStatus, child bool) (e vmm.Exit) {
	e.Orderly, e.Reason = m.reasonOf(status, child)
	e.Rebooted = e.Reason == rebooted
	switch {
	case child && status.Signaled():
		e.Status = &guest.ExecStatus{Signal: int(status.Signal())}
	case child:
		e.Status = &guest.ExecStatus{Code: status.ExitStatus()}
	case m.killed.Load():
		e.Status = &guest.ExecStatus{Signal: int(unix.SIGKILL)}
	}
	return e
}

// rebooted is the reason of an end that the guest's reset has caused. A triple fault is one as
// well.
const rebooted = "the guest rebooted"

// reasonOf finds the reason in the kernel's panic, the reason of the SHUTDOWN event (ShutdownCause
// of the QMP schema) and the status.
func (m *Machine) reasonOf(status unix.WaitStatus, child bool) (orderly bool, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.panicked != "":
		return false, "the guest's kernel panicked: " + m.panicked
	case m.killed.Load():
		return false, "killed"
	case m.shutdown == "guest-shutdown":
		return true, "the guest powered itself off"
	case m.shutdown == "guest-reset":
		return true, rebooted
	case child && status.Signaled():
		sig := int(status.Signal())
		return false, fmt.Sprintf("the VMM was killed by signal %d (SIG%s)",
			sig, guest.SignalName(sig))
	case m.shutdown == "host-signal":
		return false, "the VMM was ended by a signal"
	}
	reason = "the VMM ended unexpectedly"
	if child && status.ExitStatus() != 0 {
		reason = fmt.Sprintf("the VMM ended with status %d", status.ExitStatus())
	}
	if last := m.lastLine(); last != "" {
		reason += ": " + last
	}
	return false, reason
}

// lastLine returns QEMU's last line in the VM's log, empty if there is none.
func (m *Machine) lastLine() string {
	if m.log == nil {
		return ""
	}
	return lastLine(m.log, m.logStart)
}

// noReason matches lines of a VM's log that never say why its VMM ended: banger's own, and QEMU's
// notice that it waits for its monitor, which may name the option that it is about.
var noReason = regexp.MustCompile(`^((\d{4}-\S+Z )?banger: |\S+: (.*: )?info: )`)

// lastLine returns the last line that the VMM wrote to f after the offset, at most 512 bytes of it.
func lastLine(f *os.File, offset int64) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	offset = max(offset, info.Size()-4096)
	b, err := io.ReadAll(io.NewSectionReader(f, offset, info.Size()-offset))
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !noReason.MatchString(line) {
			last = line
		}
	}
	return last[:min(len(last), 512)]
}
