// Banger-agent is the guest's side of vmm/guest. As process 1 it is the init of
// the built-in image; otherwise a service of any Linux that only answers the host.
package main

import (
	"errors"
	"log"
	"os"
	"os/exec"

	"banger/vmm/guest"
	"banger/vmm/guest/sftp"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("banger-agent: ")
	setLimits()
	if os.Getpid() == 1 {
		runInit()
	}
	g := &agent{children: ownChildren{}, freezer: freezer{list: frozenList}, powerOff: askPowerOff}
	if err := serve(g); err != nil {
		log.Fatal(err)
	}
}

// askPowerOff tells the init of this guest to shut down.
func askPowerOff() {
	if exec.Command("systemctl", "poweroff").Run() == nil {
		return
	}
	if err := exec.Command("/sbin/poweroff").Run(); err != nil {
		log.Printf("cannot power off: %v", err)
	}
}

// serve answers the host on every channel of the guest. It returns when the first of them breaks.
func serve(g *agent) error {
	g.freezer.recover()
	g.work = tendWorkDisk()
	streams := guest.NewExecServer(g.startExec).Streams()
	streams[sftp.Stream] = sftp.Handler("/")
	if g.end != nil {
		streams[guest.EndStream] = g.end.handler()
	}
	h := guest.Handler(g, streams)
	gate := new(guest.Gate)
	ended := make(chan error, 2)
	channels := 0
	if path := findPort("/sys", "/dev", guest.PortName); path != "" {
		p, err := openPort(path)
		if err != nil {
			return err
		}
		channels++
		go func() {
			defer p.Close()
			ended <- guest.ServePort(p, gate.PortHandler(h))
		}()
	}
	if l, err := listenVsock(guest.VsockPort); err == nil {
		channels++
		gate.Proved = widen
		go func() { ended <- gate.Serve(hostOnly{l}, h) }()
	} else if !errors.Is(err, os.ErrNotExist) {
		log.Printf("cannot listen on vsock: %v", err)
	}
	if channels == 0 {
		return errors.New("no channel to the host: neither the virtio-serial port " +
			guest.PortName + " nor vsock")
	}
	return <-ended
}
