package vmm

// Act is what the daemon does with a VM by itself.
type Act string

// All acts.
const (
	ActAutostart Act = "autostart"
	ActIdle      Act = "idle"   // a stop after idle_timeout
	ActResume    Act = "resume" // there is room on the host again
	ActPause     Act = "pause"  // the VMM stopped the CPUs, for want of room for example
	ActEnd       Act = "ended"  // the guest has powered itself off
	ActReboot    Act = "reboot" // a start after the guest has rebooted
	ActRemove    Act = "remove" // its holder is gone
	ActFail      Act = "failed" // the VMM has ended otherwise, or is gone after a restart
)

// acted reports an act and its result.
func (v *VM) acted(a Act, err error) {
	if f := v.m.o.Acted; f != nil {
		f(v, a, err)
	}
}
