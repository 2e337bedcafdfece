package qemu

import (
	"context"
	"encoding/json"
	"fmt"

	"banger/vmm"
)

// queue adds a notice. A guest may cause any number, so a full queue drops it.
func (m *Machine) queue(kind vmm.NoticeKind, detail string) {
	select {
	case m.notices <- vmm.Notice{Kind: kind, Detail: detail}:
	default:
	}
}

// kernelPanicked records the guest's first panic, with the kernel's own line about it.
func (m *Machine) kernelPanicked(line string) {
	m.mu.Lock()
	first := m.panicked == ""
	if first {
		m.panicked = line
	}
	m.mu.Unlock()
	if first {
		m.queue(vmm.NoticePanic, line)
	}
}

// eventData holds the fields of all events that matter here (qapi/run-state.json and
// block-core.json of QEMU).
type eventData struct {
	Reason string `json:"reason"`
	Action string `json:"action"`
	Node   string `json:"node-name"`
	Full   bool   `json:"nospace"`
}

// event handles an event of QEMU. It does not block.
func (m *Machine) event(e qmpEvent) {
	var data eventData
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return
	}
	switch e.Name {
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = data.Reason
		m.mu.Unlock()
	case "GUEST_PANICKED":
		m.kernelPanicked("reported by pvpanic")
	case "BLOCK_IO_ERROR":
		m.diskFailed(data)
	case "STOP":
		m.stopped()
	case "RESUME":
		m.paused.Store(false)
		m.setFull(false)
	}
}

// diskFailed records a disk's error for the STOP event that follows.
func (m *Machine) diskFailed(data eventData) {
	if data.Action != "stop" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ioError, m.noSpace = fmt.Sprintf("disk %s: %s", data.Node, data.Reason), ""
	if data.Full {
		m.noSpace = data.Node
	}
}

// stopped records that the CPUs stand still, and reports a stop that banger did not ask for.
func (m *Machine) stopped() {
	m.paused.Store(true)
	m.mu.Lock()
	asked, why, disk := m.pausing > 0, m.ioError, m.noSpace
	m.ioError, m.noSpace = "", ""
	m.full = disk != "" && !asked
	m.mu.Unlock()
	switch {
	case asked && why == "":
	case disk != "":
		m.queue(vmm.NoticeFull, disk)
	case why == "":
		m.queue(vmm.NoticePaused, "the VMM stopped the CPUs: not asked by banger")
	default:
		m.queue(vmm.NoticePaused, "the VMM stopped the CPUs: "+why)
	}
}

func (m *Machine) setFull(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

// Full implements vmm.Machine.
func (m *Machine) Full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.full
}

// Paused reports whether the CPUs were stopped at QEMU's last event.
func (m *Machine) Paused() bool { return m.paused.Load() }

// status returns QEMU's word for the state of the machine (RunState of qapi/run-state.json).
func (m *Machine) status(ctx context.Context) (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.qmp.call(ctx, "query-status", nil, &s)
	return s.Status, err
}

// Pause implements vmm.Machine. It returns when the CPUs stand still.
func (m *Machine) Pause(ctx context.Context) error {
	m.mu.Lock()
	m.pausing++
	m.full = false
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.pausing--
		m.mu.Unlock()
	}()
	if err := m.call(ctx, "stop", nil, nil); err != nil {
		return err
	}
	m.paused.Store(true)
	return nil
}

// Resume implements vmm.Machine.
func (m *Machine) Resume(ctx context.Context) error {
	// The RESUME event precedes the answer. A STOP of a disk that is still full may follow it, so
	// nothing is recorded here.
	return m.call(ctx, "cont", nil, nil)
}
