// Package netname gives names to network namespaces, as `ip netns` does.
//
// A named network namespace is a file in /run/netns on which the namespace is mounted. It lasts as long as that mount,
// in whichever mount namespace that is. A daemon that a service manager, or `ip netns exec`, gave a mount namespace of
// its own would take it away with itself, and with it all containers' interfaces. So names are mounted in a mount
// namespace that lasts, if there is another one with the same /run/netns: that of process 1, or of the process that we
// descend from, or of any that does not itself follow others' mounts. From there they reach all that listen to it.
//
// All functions are safe for concurrent use. The package imports nothing of this module.
package netname
