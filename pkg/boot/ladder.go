package boot

import "github.com/kapernikov/osctl/pkg/device"

// The kinds of a boot: what GRUB says on the kernel command line (osctl.boot=)
// of why it chose this system.
const (
	KindCommitted = "committed"
	KindTrial     = "trial"
	KindFallback  = "fallback"
	KindUnsaved   = "unsaved"
	KindPristine  = "pristine"
	KindOther     = "other"
	KindRescue    = "rescue"
)

// Next is what GRUB does at a boot, if it can save and can start what it chose:
// the system that it boots and the state that it leaves. It takes one try; a
// trial without tries left becomes a fall back, and a rung without tries left
// gives way to the next one, the last one to the first.
func Next(s State) (device.Boot, State) {
	if s.Phase == Trial {
		if s.Tries > 0 {
			s.Tries--
			return device.Boot{Slot: s.Rootfs, Kind: KindTrial}, s
		}
		s = s.fallenBack()
	}
	if s.Tries == 0 || s.Rung == RungOther && !s.Other {
		s.Rung, s.Tries = s.below(), FullTries
	}
	s.Tries--
	return s.place(), s
}

// below is the rung under the present one. The ladder is a circle: what keeps the
// rescue system from helping, or from starting, must not keep the machine from
// a slot that may work again.
func (s State) below() Rung {
	switch {
	case s.Rung == RungSlot:
		return RungPristine
	case s.Rung == RungRescue:
		return RungSlot
	case s.Rung == RungPristine && s.Other:
		return RungOther
	}
	return RungRescue
}

// place is what stands on the present rung of a proven slot.
func (s State) place() device.Boot {
	switch s.Rung {
	case RungPristine:
		return device.Boot{Slot: s.Rootfs, Kind: KindPristine}
	case RungOther:
		return device.Boot{Slot: s.Rootfs.Other(), Kind: KindOther}
	case RungRescue:
		return device.Boot{Slot: device.Rescue, Kind: KindRescue}
	case RungSlot:
	}
	if s.Phase == FellBack {
		return device.Boot{Slot: s.Rootfs, Kind: KindFallback}
	}
	return device.Boot{Slot: s.Rootfs, Kind: KindCommitted}
}

// Unsaved is what GRUB boots when it cannot save what Next leaves: the proven
// slot, so that no trial and no lower rung, rescue among them, is booted without
// being counted.
func Unsaved(s State) device.Boot { return device.Boot{Slot: s.Proven(), Kind: KindUnsaved} }

// Why says in words, for people, what a kind of boot tells about the machine;
// empty for a boot as it should be.
func Why(kind string) string {
	switch kind {
	case KindTrial:
		return "the system is on trial"
	case KindFallback:
		return "the other slot failed its trial"
	case KindUnsaved:
		return "GRUB could not save or find the boot state"
	case KindPristine:
		return "the system did not come up with the /etc of this machine, so it runs with the pristine one of its image"
	case KindOther:
		return "the committed slot did not come up or could not be started, so the other one runs"
	case KindRescue:
		return "no slot came up, so the rescue system runs"
	}
	return ""
}
