package vtep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// SetAddresses states the local underlay addresses in place of those of Config.Underlay.Addresses, while Run runs or not, as
// when those of the host have changed. Sockets at addresses that stay are kept. Should one of the new ones not be usable yet,
// the old ones stay, and they are tried again whenever something changes about the host's links, addresses or routes. The
// error wraps a *ConfigError, and then nothing has changed, or is about what could not be taken into use.
func (v *VTEP) SetAddresses(addresses []netip.Addr) error {
	v.change.Lock()
	defer v.change.Unlock()
	if len(addresses) == 0 {
		return &ConfigError{"underlay.addresses", errors.New("there is none: state at least one")}
	}
	if err := validateLocal(addresses); err != nil {
		return err
	}
	v.cfg.Underlay.Addresses = slices.Clone(addresses)
	v.followAddresses()
	v.readRoutes()
	if v.prober != nil {
		v.prober.RoutesChanged()
	}
	for _, a := range addresses {
		if v.endpointAt(a) == nil {
			return fmt.Errorf("the underlay address %v could not be taken into use: see the log for the reason", a)
		}
	}
	return nil
}
