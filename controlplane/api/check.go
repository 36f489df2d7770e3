package api

import (
	"fmt"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// Each check of this file returns an error of the kind Invalid that names the first field at fault, and
// otherwise puts the request into the canonical form that Cluster promises. Whether what a request asks for is
// possible is for the Cluster to say.

const (
	maxAdvertise = 8
	maxRemotes   = 16
	maxIPs       = 2 // one of each family
)

func checkInit(req *overlaydv1.InitRequest) error {
	if err := checkAdvertise(req.Advertise); err != nil {
		return err
	}
	return checkName("name", req.Name)
}

func checkJoin(req *overlaydv1.JoinRequest) error {
	if err := checkToken("token", req.Token); err != nil {
		return err
	}
	if err := checkRemotes("remotes", req.Remotes); err != nil {
		return err
	}
	if err := checkAdvertise(req.Advertise); err != nil {
		return err
	}
	return checkName("name", req.Name)
}

func checkAdvertise(list []string) error {
	if err := atMost("advertise", len(list), maxAdvertise); err != nil {
		return err
	}
	for i, s := range list {
		field := element("advertise", i)
		a, err := checkAddress(field, s)
		if err != nil {
			return err
		}
		if a.IsLoopback() {
			return invalid(field, "%v is only this host's own; give an address that the other hosts can reach", a)
		}
		list[i] = a.String()
		if err := notTwice(field, list[:i], list[i]); err != nil {
			return err
		}
	}
	return nil
}

func checkGetTokens(req *overlaydv1.GetTokensRequest) error {
	return checkWord("role", req.Role, RoleWorker, RoleManager)
}

func checkRotateToken(req *overlaydv1.RotateTokenRequest) error {
	if req.Role == "" {
		return invalid("role", "it is missing; choose %s or %s", RoleWorker, RoleManager)
	}
	return checkWord("role", req.Role, RoleWorker, RoleManager)
}

func checkGetNode(req *overlaydv1.GetNodeRequest) error { return checkRef("node", req.Node) }

func checkUpdateNode(req *overlaydv1.UpdateNodeRequest) error {
	if err := checkRef("node", req.Node); err != nil {
		return err
	}
	if req.Role == "" && req.Availability == "" {
		return invalid("role", "neither it nor availability is set, so nothing would change; set one of them")
	}
	if err := checkWord("role", req.Role, RoleWorker, RoleManager); err != nil {
		return err
	}
	return checkWord("availability", req.Availability, AvailabilityActive, AvailabilityDrain)
}

func checkRemoveNode(req *overlaydv1.RemoveNodeRequest) error { return checkRef("node", req.Node) }

func checkCreateNetwork(req *overlaydv1.CreateNetworkRequest) error {
	if req.Name == "" {
		return invalid("name", "it is missing; choose one")
	}
	if err := checkName("name", req.Name); err != nil {
		return err
	}
	if err := checkVNI("vni", req.Vni); err != nil {
		return err
	}
	subnets, err := checkSubnets("subnets", req.Subnets)
	if err != nil {
		return err
	}
	if req.Gateways, err = checkGateways("gateways", req.Gateways, subnets); err != nil {
		return err
	}
	if err := checkMTU("mtu", req.Mtu, subnets); err != nil {
		return err
	}
	return checkMSS("mss", req.Mss, req.Mtu)
}

func checkGetNetwork(req *overlaydv1.GetNetworkRequest) error {
	return checkRef("network", req.Network)
}

func checkRemoveNetwork(req *overlaydv1.RemoveNetworkRequest) error {
	return checkRef("network", req.Network)
}

func checkAddEndpoint(req *overlaydv1.AddEndpointRequest) error {
	if err := checkRef("network", req.Network); err != nil {
		return err
	}
	if err := checkNetNS("netns", req.Netns); err != nil {
		return err
	}
	if err := checkName("name", req.Name); err != nil {
		return err
	}
	if err := atMost("ips", len(req.Ips), maxIPs); err != nil {
		return err
	}
	family := make(map[bool]string)
	for i, s := range req.Ips {
		field := element("ips", i)
		a, err := checkAddress(field, s)
		if err != nil {
			return err
		}
		if other, ok := family[a.Is4()]; ok {
			return invalid(field, "%v is the second address of its family, after %s; give at most one of IPv4 and one of IPv6", a, other)
		}
		req.Ips[i] = a.String()
		family[a.Is4()] = req.Ips[i]
	}
	var err error
	if req.Mac, err = checkMAC("mac", req.Mac); err != nil {
		return err
	}
	return checkInterface("interface", req.Interface)
}

func checkListEndpoints(req *overlaydv1.ListEndpointsRequest) error {
	if req.Network != "" {
		if err := checkRef("network", req.Network); err != nil {
			return err
		}
	}
	if req.Node != "" {
		if err := checkRef("node", req.Node); err != nil {
			return err
		}
	}
	if req.PageSize == 0 || req.PageSize > MaxEndpoints {
		req.PageSize = MaxEndpoints
	}
	if req.PageToken != "" && !isID(req.PageToken) {
		return invalid("page_token", "%s is none of ours; pass on the next_page_token of the answer before", show(req.PageToken))
	}
	return nil
}

func checkRemoveEndpoint(req *overlaydv1.RemoveEndpointRequest) error {
	if err := checkRef("network", req.Network); err != nil {
		return err
	}
	return checkRef("endpoint", req.Endpoint)
}

// invalid is the error of a field that is missing or malformed.
func invalid(field, format string, args ...any) error { return Errorf(Invalid, field, format, args...) }

// element is the name of one element of a repeated field.
func element(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
